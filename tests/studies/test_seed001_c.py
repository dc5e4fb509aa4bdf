"""The studies of experiments 5 to 7 of seed 001 on a little made-up text, and on the seed's own pangram."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from offramp.errors import UserError
from offramp.systems.growth import schedule
from studies.adding_a_layer import study as adding_a_layer
from studies.common import growing as _growing
from studies.common import growth_study as _growth_study
from studies.common.characters import OwnText, corrected, pangram_text, published_1b
from studies.common.growing import Arm, Plan, Task, build, planned_flops, train_all
from studies.common.growth_study import points, points_at_equal_flops, slug
from studies.common.results import over_seeds, study_params
from studies.common.text import Document
from studies.greedy_growth import study as greedy_growth
from studies.ledger.figures import terms
from studies.ledger.ledger import read_claims
from studies.ledger.verdict import Region
from studies.progressive_growth import study as progressive_growth

EXPERIMENTS = [study.EXPERIMENT for study in (adding_a_layer, greedy_growth, progressive_growth)]
SHORT = {"start": 2, "stage": 2, "whole": 8, "batches_per_look": 1}
SETTINGS = {
    "published": {"epochs": 1, "patience": 1},
    "20k": SHORT,
    "pangram": SHORT | {"start": 1, "stage": 1, "whole": 4},
}


def words(characters: int, seed: int) -> str:
    random = np.random.default_rng(seed)
    return " ".join(random.choice(["alpha", "beta", "gamma", "delta"], characters // 4))[:characters]


@pytest.fixture(scope="module")
def own() -> OwnText:
    return OwnText(
        "own",
        "made up",
        [Document("a", words(2100, 0))],
        [Document("b", words(200, 1))],
        (Document("c", words(200, 2)),),
    )


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """One process, models of width 16, and little of the pangram."""
    monkeypatch.setattr(
        _growth_study,
        "published_1b",
        lambda: replace(
            published_1b(), splits={split: ids[: 16 * 64 + 1] for split, ids in published_1b().splits.items()}
        ),
    )
    monkeypatch.setattr(_growth_study, "train_all", partial(train_all, processes=1))
    for name, size in {"WIDTH": 16, "HEADS": 2, "FFN_WIDTH": 64}.items():
        monkeypatch.setattr(_growing, name, size)


def known(experiment) -> list[str]:
    return list(dict.fromkeys([*experiment.arms, *experiment.published]))


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda experiment: experiment.name)
def test_every_claim_finds_its_figures_and_every_arm_is_shown(experiment, own):
    """On the pangram those as published and those of the control, on real text the corrected ones."""
    on_pangram = experiment.run(SETTINGS, (0, 1))(pangram_text(), "both", known(experiment))
    on_text = experiment.run(SETTINGS, (0, 1))(own, "corrected", known(experiment))
    assert on_text.published is None and all(
        math.isfinite(value) for row in on_text.corrected for value in row.values()
    )
    real = {name.removeprefix("own.") for name in over_seeds(on_text.corrected)}
    control = {name.removeprefix("20k.") for name in over_seeds(on_pangram.corrected)}
    larger = [slug(arm) for arm in experiment.fewer["500k"]]
    assert [row[0] for row in on_text.figures["arms.own"]["rows"]] == list(experiment.arms)
    assert (
        set(experiment.drawn) == {row[1] for row in on_text.figures["growth"]["rows"]}
        and len(on_text.sentences) == 1
    )
    assert {arm for arms in experiment.fewer.values() for arm in arms} == set(experiment.arms)
    claims = [claim for claim in read_claims() if claim.study == experiment.name]
    assert len(claims) >= 20
    for claim in claims:
        for _, key in terms(claim.key, claim.study)[1]:
            assert key in on_pangram.published, claim.id
        for _, key in terms(claim.corrected_key, claim.study)[1]:
            size, _, name = key.partition(".")
            assert name in (control if claim.corpora == ["pangram"] else real), claim.id
            if size == "500k":
                assert claim.corpora == ["sotu"]
                assert all(part.rstrip("_1234") in larger for part in name.split("diff.")[1].split("_minus_"))


def test_the_published_protocol_is_of_the_pangram(own):
    experiment = adding_a_layer.EXPERIMENT
    with pytest.raises(UserError, match=r"--protocol = 'published'.*--corpus pangram"):
        experiment.run(SETTINGS, (0, 1))(own, "published", known(experiment))


def test_an_arm_that_this_text_lacks_is_named():
    with pytest.raises(
        UserError, match="--arm = 'full append, rates': not trained on the text pangram, --protocol corrected"
    ):
        adding_a_layer.EXPERIMENT.run(SETTINGS, (0, 1))(pangram_text(), "corrected", ["full append, rates"])


def test_mistakes_are_in_no_corrected_arm_but_those_named_after_them():
    for experiment in EXPERIMENTS:
        for name, arm in experiment.arms.items():
            assert (arm.schedule.goes_on_from == "last") == ("last weights" in name)
            assert (arm.schedule.embedding == "never trained") == ("never trained" in name)
    assert all(
        arm.schedule.goes_on_from == "last"
        for name, arm in greedy_growth.EXPERIMENT.published.items()
        if name != "scratch"
    )


def plan(**changes) -> Plan:
    return Plan(**{"seeds": (0, 1), "start": 2, "stage": 1, "whole": 4, "batches_per_look": 1} | changes)


def test_an_arm_does_not_depend_on_its_company(own):
    arms = {
        "grown": Arm(schedule("full append", 3, start=2)),
        "frozen": Arm(schedule("frozen append", 3, start=2)),
        "lpt": Arm(schedule("progressive", 3), "sum"),
    }
    text = corrected(own, "own")
    together = train_all({"a": Task(arms, text, plan())}, 1)["a"]
    alone = train_all({"a": Task({"frozen": arms["frozen"]}, text, plan())}, 1)["a"]
    assert alone["frozen"] == together["frozen"]
    assert (
        together["grown"].stages[0] == together["frozen"].stages[0]
        and together["grown"].stages[1] != together["frozen"].stages[1]
    )


def test_a_stage_goes_on_from_the_best_weights_or_the_last(own, monkeypatch):
    """Rates so high that the later of two looks is the worse one."""
    from offramp.systems.ensemble import Optimisation

    monkeypatch.setattr(_growing, "AS_PUBLISHED", Optimisation(learning_rate=0.3))
    arms = {kind: Arm(schedule("no growth", 2, goes_on_from=kind)) for kind in ("best", "last")}
    found = train_all({"a": Task(arms, corrected(own, "own"), plan(start=8))}, 1)["a"]
    first = torch.tensor(found["best"].stages[0].calibration)
    assert (first.argmin(dim=0) < 7).any(), "nothing to tell apart"
    assert found["best"].stages[1].at_once == found["best"].stages[0].planned.nll
    assert (
        found["last"].stages[0] == found["best"].stages[0]
        and found["last"].stages[1].at_once != found["best"].stages[1].at_once
    )


def test_budgets(own):
    """A control of one layer trains on until it has cost what the growing arm costs; four layers from scratch end early."""
    text = corrected(own, "own")
    arms = {
        "grown": Arm(schedule("progressive", 4)),
        "no growth": Arm(schedule("no growth", 4)),
        "scratch": Arm(schedule("progressive", 4, start=4)),
    }
    long = plan(start=2, stage=2, whole=8, batches_per_look=2)
    budget = planned_flops(arms["grown"], text, long)
    found = train_all({"a": Task(arms, text, long, budget)}, 1)["a"]
    last = {name: looks.stages[-1] for name, looks in found.items()}
    assert found["grown"].stages[-1].flops_after == budget and last["grown"].updates_after == 16
    assert last["grown"].equal_flops == last["grown"].planned
    rest = budget - last["no growth"].flops_after
    assert (
        last["no growth"].updates_after > 16 and 0 <= rest < last["no growth"].flops_per_batch
    )  # to the very update
    assert max(last["no growth"].planned.updates) <= 16 and last["scratch"].updates_after == 16
    paid = budget // last["scratch"].flops_per_batch
    assert max(last["scratch"].equal_flops.updates) <= paid < 16
    between = {name for name in ("no growth", "scratch") for batches in last[name].looks if batches % 2}
    assert paid in last["scratch"].looks and between, "no limit was between two looks"
    assert set(points_at_equal_flops(found)) == {"grown", "no_growth", "scratch"}
    assert {"grown", "grown_1", "grown_4", "grown_at_once", "no_growth_4", "scratch"} <= set(points(found))


def test_a_frozen_layer_costs_no_backward_pass(own):
    text = corrected(own, "own")
    cost = {
        name: planned_flops(Arm(schedule(name, 4)), text, plan())
        for name in ("greedy", "progressive", "no growth")
    }
    assert cost["no growth"] < cost["greedy"] < cost["progressive"]


def test_models_have_the_seeds_size(monkeypatch):
    for name, size in {"WIDTH": 64, "HEADS": 4, "FFN_WIDTH": 256}.items():
        monkeypatch.setattr(_growing, name, size)
    model = build(4, 30)
    assert sum(parameter.numel() for parameter in model.parameters()) == 266_496
    assert all(0.015 < parameter.std() < 0.025 for parameter in model.parameters() if parameter.ndim == 2)


def test_parameters_cover_every_plan():
    for experiment in EXPERIMENTS:
        settings = study_params(experiment.name)
        for size in ("20k", "500k", "pangram"):
            one = Plan((0,), **settings[size])
            arm = experiment.arms[experiment.reference]
            grown = [
                looks
                for stage, looks in zip(arm.schedule.stages(), one.looks(arm.schedule))
                if stage.name != "fine-tune"
            ]
            assert sum(grown) == one.whole, "training from scratch has as many updates as growing"


def test_a_claim_of_destruction_needs_half_a_nat():
    regions = {claim.id: claim.region for claim in read_claims() if claim.seed == "001"}
    assert regions["001-add-full-destroys"] == Region(0.5, None) and regions[
        "001-greedy-collapses"
    ] == Region(1.0, None)
