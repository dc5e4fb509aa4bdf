"""Experiments 8 to 11 on a few thousand characters and models of width 16: every figure that a claim needs is there and defined."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from offramp.errors import UserError
from studies.common import depth as _depth
from studies.common.workers import chosen_arms
from studies.common.characters import (
    BATCH_SIZE,
    WINDOW,
    Characters,
    OwnText,
    corrected,
    pangram_text,
    published_1b,
)
from studies.common.depth import ARMS, SETTINGS, build, protocol_of, trained
from studies.common.exits import (
    as_published,
    depth_flops,
    execute,
    execute_all_early,
    quantile_threshold,
    share_within,
)
from studies.common.text import Document
from studies.confidence_routing import study as confidence_routing
from studies.early_exit_feasibility import study as early_exit_feasibility
from studies.findings.plots import draw_plot, plot_of
from studies.layer_contribution import study as layer_contribution
from studies.ledger.figures import terms
from studies.ledger.ledger import read_claims
from studies.measures.layer_contribution import LayerStatistics, layer_statistics
from studies.routing_losses import study as routing_losses

STUDIES = {
    "layer_contribution": layer_contribution,
    "early_exit_feasibility": early_exit_feasibility,
    "confidence_routing": confidence_routing,
    "routing_losses": routing_losses,
}
WORDS = [
    "we",
    "the",
    "people",
    "of",
    "these",
    "states",
    "in",
    "order",
    "to",
    "form",
    "a",
    "more",
    "perfect",
    "union",
    "and",
]


def words(count: int, seed: int) -> list[Document]:
    random = np.random.default_rng(seed)
    return [Document(str(seed), " ".join(random.choice(WORDS, count)) + ".\n")]


def few_sentences() -> Characters:
    """The pangram's beginning: 3 batches to learn from, 16 windows to look at."""
    whole = published_1b()
    lengths = {"train": 3 * BATCH_SIZE * WINDOW + 1, "validation": BATCH_SIZE * WINDOW + 1}
    return replace(
        whole, splits={split: whole.splits[split][:length] for split, length in lengths.items()}, _windows={}
    )


@pytest.fixture(scope="module", autouse=True)
def small():
    """Tiny models and trainings, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "width": 16,
            "heads": 2,
            "ffn_width": 32,
            "updates": {"own": 15},
            "look_every": {"own": 5},
            "published": {"max_epochs": 1, "patience": 1},
        }.items():
            patch.setitem(SETTINGS, name, value)
        patch.setattr(_depth, "PROCESSES", 1)
        for study in STUDIES.values():
            patch.setattr(study, "published_1b", few_sentences)
        yield


@pytest.fixture(scope="module")
def text() -> OwnText:
    return OwnText("own", "made up", words(900, 0), words(250, 1), tuple(words(250, 2)))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("studies")


@pytest.fixture(scope="module")
def outcomes(text, root):
    """(published, corrected) of every study; the order is that of the stages."""
    pangram = ("layer_contribution", "early_exit_feasibility")
    found = {}
    for name, study in STUDIES.items():
        arms = getattr(study, "ARMS", None) or (
            layer_contribution.LAYER_ARMS if name in pangram else routing_losses.LOSSES
        )
        published = study.run_published() if name in pangram else study.run_published(list(arms))
        found[name] = published, study.run_corrected(text, list(arms), root)
    return found


@pytest.fixture(scope="module")
def claims():
    return read_claims()


@pytest.mark.parametrize("name", STUDIES)
def test_every_figure_that_a_claim_needs_is_there(outcomes, claims, name):
    published, found = outcomes[name]
    claims = [claim for claim in claims if claim.study == name]
    assert len(claims) >= 30
    for claim in claims:
        assert all(key in published.published for _, key in terms(claim.key, name)[1]), claim.id
        key = claim.corrected_key.replace("20k.", "own.", 1).replace("500k.", "own.", 1)
        for values in found.corrected:
            assert key in values, claim.id


@pytest.mark.parametrize("name", STUDIES)
def test_figures_are_numbers_and_plots_can_be_drawn(outcomes, name):
    for outcome in outcomes[name]:
        for values in [outcome.published] if outcome.published else outcome.corrected:
            assert all(math.isfinite(value) for value in values.values())
        json.dumps(outcome.figures, allow_nan=False)
    assert len(outcomes[name][1].corrected) == 5
    drawn = draw_plot(plot_of({"study": name, "figures": outcomes[name][1].figures}))
    assert drawn.count("<svg") == 1
    keys = [set(values) for values in outcomes[name][1].corrected]
    assert all(one == keys[0] for one in keys)


# Models ---------------------------------------------------------------------------------------------------------------


def test_models_have_the_published_parameters():
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"width": 64, "heads": 4, "ffn_width": 256}.items():
            patch.setitem(SETTINGS, name, value)
        assert sum(weight.numel() for weight in build(30, 4).parameters()) == 266_496
        assert sum(weight.numel() for weight in build(30, 2).parameters()) == 135_168
        torch.manual_seed(0)
        for std, model in ((0.02, build(30, 4, 0.02)), (0.125, build(30, 4))):
            assert model.embedding.weight.detach().std() == pytest.approx(0.02, rel=0.1)
            for weight in (
                model.heads[0],
                model.blocks[0][0].ffn_out.weight,
                model.blocks[3][0].query.weight,
            ):
                assert weight.detach().std() == pytest.approx(std, rel=0.1)


def test_trained_models_are_found_again(outcomes, text, root, monkeypatch):
    before = trained(text, "depth", ["four_layers"], root)["own", "four_layers"]
    monkeypatch.setattr(_depth, "_make", None)
    again = trained(text, "depth", ["four_layers"], root)["own", "four_layers"]
    assert torch.equal(before.models[3].heads[0], again.models[3].heads[0]) and before.curves == again.curves
    other = OwnText("own", "made up", words(900, 5), words(250, 1), tuple(words(250, 2)))
    with pytest.raises(TypeError):  # it would have to train
        trained(other, "depth", ["four_layers"], root)


def test_models_of_layers_and_of_routing_start_as_those_of_the_seed(outcomes, text, root):
    of_layers, of_routing = (
        trained(text, models, ["four_layers"], root)["own", "four_layers"]
        for models in ("depth", "depth_routing")
    )
    for start, made in (
        (0.02, of_layers),
        (1 / 4, of_routing),
    ):  # a width of 16; these few updates move them little
        for model in made.models:
            assert model.blocks[0][0].query.weight.detach().std() == pytest.approx(start, rel=0.3)


@pytest.mark.parametrize(
    ("name", "start"),
    [("layer_contribution", "lpt."), ("early_exit_feasibility", "lpt."), ("routing_losses", "")],
)
def test_every_figure_is_there_at_equal_updates_and_at_equal_flops(outcomes, name, start):
    for values in outcomes[name][1].corrected:
        own = {key.removeprefix("own.") for key in values}
        at_equal_flops = {key.removeprefix("flops.") for key in own if key.startswith("flops.")}
        assert (
            at_equal_flops
            == {key for key in own if key.startswith(start) and not key.startswith("flops.")}
            != set()
        )


def test_cheaper_updates_are_more_of_them_at_equal_flops(outcomes, text, root):
    found = {arm: trained(text, "depth_routing", [arm], root)["own", arm] for arm in ARMS}
    assert all(made.updates["updates"] == 15 for made in found.values())
    more = [found[arm].updates["flops"] for arm in ("two_layers", "three_layers", "four_layers", "lpt")]
    assert more == sorted(more, reverse=True) and more[0] > more[2] == 15
    routed = found["routed"]
    assert (
        routed.updates["flops"] < 15
    )  # its updates cost a readout more: the limit is in between two looks, and looked at
    assert len(routed.models) == 5 and list(routed.curves[0]) == sorted({5, 10, routed.updates["flops"], 15})


def test_protocols_belong_to_texts(text):
    assert protocol_of(pangram_text(), "both") == "published" and protocol_of(text, "both") == "corrected"
    with pytest.raises(UserError, match="--protocol = 'published' is not one of own; give --corpus pangram"):
        protocol_of(text, "published")
    with pytest.raises(UserError, match="--corpus sotu or wikitext"):
        protocol_of(pangram_text(), "corrected")
    with pytest.raises(
        UserError,
        match=r"--arm = 'five_layers' is not an arm of confidence_routing; choose from 'routed', 'two_layers'",
    ):
        chosen_arms("confidence_routing", ["five_layers"], confidence_routing.ARMS)


def test_arms_can_run_alone(text, root):
    alone = layer_contribution.run_corrected(text, ["lpt"], root)
    assert "own.lpt.gain.hard" in alone.corrected[0] and "losses" not in alone.figures
    model = trained(text, "depth_routing", ["two_layers"], root)["own", "two_layers"].models[0]
    data = corrected(text, "own")
    values = confidence_routing.seed_values(
        {"two_layers": model}, data.windows("calibration"), data.windows("test"), 0.8
    )
    assert set(values) == {"ppl.two_layers", "accuracy.two_layers", "executed.two_layers"}


# Routing ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def routed(outcomes, text, root):
    return trained(text, "depth_routing", ["routed"], root)["own", "routed"].models[0], corrected(
        text, "own"
    ).windows("test")


def test_executed_routing_is_between_its_fixed_depths(routed):
    model, windows = routed
    found = layer_statistics(model, *windows)
    everybody, nobody = execute_all_early(model, 2, windows), execute(model, 2, windows)
    np.testing.assert_allclose(everybody.loss, found.loss[1], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(nobody.loss, found.loss[3], rtol=1e-4, atol=1e-4)
    assert (everybody.layers, nobody.layers, everybody.shallow, nobody.shallow) == (0.5, 1.0, 1.0, 0.0)
    assert nobody.flops == 1 and everybody.flops == pytest.approx(depth_flops(2, 97) / depth_flops(4, 97))
    half = execute(model, 2, windows, quantile_threshold(found.max_prob[1], 0.5))
    assert half.shallow == pytest.approx(0.5, abs=0.02) and half.layers == pytest.approx(0.75, abs=0.01)
    np.testing.assert_allclose(half.loss[half.early], found.loss[1][half.early], rtol=1e-4, atol=1e-4)
    asked = execute(model, 2, windows, 2.0)
    assert asked.shallow == 0 and asked.flops > 1  # asking costs a readout of every token


def test_exits_laid_down_are_taken(routed):
    model, windows = routed
    leaves = np.random.default_rng(0).random(windows[0].numel()) < 0.3
    assert (execute(model, 2, windows, leaves=leaves).early == leaves).all()


def test_a_budget_is_met(routed):
    model, windows = routed
    confidence = layer_statistics(model, *windows).max_prob[1]
    share = share_within(model, 2, windows, confidence, 0.85)
    assert execute(model, 2, windows, quantile_threshold(confidence, share)).flops == pytest.approx(
        0.85, abs=0.02
    )


def of(confidence: list[float], first: list[int], last: list[int], target: list[int]) -> LayerStatistics:
    blank = np.zeros((2, len(target)))
    return LayerStatistics(
        np.array([first, last], float),
        np.array([first, last]),
        np.array([confidence, confidence]),
        blank,
        blank,
        np.array(target),
    )


def test_the_seed_counts_layers_and_skips_none():
    found = as_published(of([0.9, 0.8, 0.3, 0.2], [1, 2, 3, 4], [1, 0, 3, 5], [1, 1, 1, 5]), 1, 0.8)
    assert found.early.tolist() == [True, True, False, False]
    assert found.right.tolist() == [True, False, False, True]
    assert found.layers == pytest.approx((0.5 + 0.5 + 1 + 1) / 4) and found.flops == 1


def test_a_safe_threshold_loses_nothing_on_the_text_that_chose_it():
    right_early = of([0.9, 0.8, 0.7, 0.6], [1, 1, 0, 1], [1, 0, 1, 1], [1, 1, 1, 1])
    assert early_exit_feasibility.safe_threshold(right_early) == pytest.approx(
        0.6
    )  # one lost at 0.7, one won at 0.8
    wrong = of([0.9, 0.8], [0, 0], [1, 1], [1, 1])
    assert early_exit_feasibility.safe_threshold(wrong) == 2.0
    tied = of([0.9, 0.9], [1, 0], [1, 1], [1, 1])
    assert early_exit_feasibility.safe_threshold(tied) == 2.0  # no threshold parts the two


def test_the_pangram_is_a_few_dozen_places(outcomes):
    assert outcomes["early_exit_feasibility"][0].published["contexts"] == 36
    assert published_1b().windows("validation")[0].numel() == 4096


def test_the_sweep_is_of_the_model_of_the_headline(outcomes):  # F17
    for values in outcomes["routing_losses"][1].corrected:
        assert values["own.ppl.routed"] == values["own.sweep.ppl.routed.0.8"]


def test_the_seed_kept_the_best_epoch_and_swept_the_last(monkeypatch):  # F17
    looks = iter([1.0, 2.0])
    monkeypatch.setattr(_depth, "mean_nll", lambda *given: torch.tensor([next(looks)]))
    monkeypatch.setitem(SETTINGS, "published", {"max_epochs": 2, "patience": 5})
    run = _depth.train_as_published(few_sentences(), "two_layers", 42, None)
    assert run.best_epoch == 1 and not torch.equal(run.best.heads[0], run.last.heads[0])
