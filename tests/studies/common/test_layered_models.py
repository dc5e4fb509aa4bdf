"""Models of the studies of depth, tiny and on a few thousand characters: sizes, limits, and that they are
found again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from studies.common import layered_models
from studies.common.characters import Sizes, published_1b
from studies.common.layered_models import LayeredModels, Trained, Use, build, train_as_published, trained
from studies.common.study import study_of
from studies.common.text import StudyText, study_text
from tests.fixtures.tiny_studies import tiny_job

pytestmark = pytest.mark.slow

ARMS = ("four_layers", "three_layers", "two_layers", "routed", "soft", "lpt", "routing_aware")
SIZE = "20k"


@pytest.fixture(scope="module")
def text() -> StudyText:
    return study_text("sotu")


@pytest.fixture(scope="module")
def models(text) -> LayeredModels:
    """Tiny ones that are trained for a few more updates, at one size of the text."""
    shared = tiny_job("confidence_routing", text, "corrected", Path()).shared["layered_models"]
    return LayeredModels.of({**shared, "updates": {SIZE: 15}, "look_every": {SIZE: 5}})


@pytest.fixture(scope="module")
def sizes(text) -> Sizes:
    shared = tiny_job("confidence_routing", text, "corrected", Path()).shared["characters"]
    return Sizes.of({**shared, "by_corpus": {"sotu": [SIZE]}})


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def train(text, models, sizes, cache):
    """Models of some arms at ``SIZE``, by arm."""

    def of_arms(arms: Sequence[str], use: Use = "routing", **changes: object) -> dict[str, Trained]:
        given = {"seeds": (0, 1), "processes": 1, "cache": cache} | changes
        return {arm: result for (_, arm), result in trained(text, use, arms, models, sizes, **given).items()}

    return of_arms


@pytest.fixture
def untrained(monkeypatch):
    """No model can be trained any more: whoever would have to raises RuntimeError."""

    def make(recipe: layered_models.Recipe) -> None:
        raise RuntimeError(f"{recipe.arm} has to be trained")

    monkeypatch.setattr(layered_models, "make", make)


def test_models_have_the_published_parameters():
    section = study_of("routing_losses").job(study_text("sotu"), "published", Path()).shared["layered_models"]
    models = LayeredModels.of(section)
    for layers, count in ((4, 266_496), (2, 135_168)):
        model = build(30, layers, models, models.linear_std)
        assert sum(weight.numel() for weight in model.parameters()) == count
    torch.manual_seed(0)
    for use, std in (("layers", 0.02), ("routing", 0.125)):
        model = build(30, 4, models, models.start_std(use))
        assert model.embedding.weight.detach().std() == pytest.approx(0.02, rel=0.1)
        for weight in (model.heads[0], model.blocks[0][0].ffn_out.weight, model.blocks[3][0].query.weight):
            assert weight.detach().std() == pytest.approx(std, rel=0.1)


def test_models_of_layers_and_of_routing_start_as_the_report_s(train):
    for use, std in (("layers", 0.02), ("routing", 1 / 4)):  # a width of 16; few updates move them little
        for model in train(["four_layers"], use)["four_layers"].models:
            assert model.blocks[0][0].query.weight.detach().std() == pytest.approx(std, rel=0.3)


def test_cheaper_updates_are_more_of_them_at_equal_flops(train):
    results = train(ARMS)
    assert all(result.updates["updates"] == 15 for result in results.values())
    more = [results[arm].updates["flops"] for arm in ("two_layers", "three_layers", "four_layers", "lpt")]
    assert more == sorted(more, reverse=True) and more[0] > more[2] == 15


def test_the_end_of_each_limit_is_looked_at(train):
    routed = train(["routed"])["routed"]
    # its updates cost a readout more: the limit of FLOPs is between two looks
    assert routed.updates["flops"] < 15
    assert [*routed.curves[0]] == sorted({5, 10, routed.updates["flops"], 15})
    assert len(routed.models) == len(routed.flops_models) == 2


def test_trained_models_are_found_again(train, untrained):
    before = train(["four_layers"], "layers")["four_layers"]
    again = train(["four_layers"], "layers")["four_layers"]
    assert torch.equal(before.models[1].heads[0], again.models[1].heads[0])
    assert before.curves == again.curves


def test_other_random_seeds_or_another_cache_are_trained(train, untrained, tmp_path):
    with pytest.raises(RuntimeError, match="four_layers has to be trained"):
        train(["four_layers"], "layers", seeds=(0, 2))
    with pytest.raises(RuntimeError, match="four_layers has to be trained"):
        train(["four_layers"], "layers", cache=tmp_path)


def test_models_of_other_code_are_trained_again(train, untrained, monkeypatch):
    train(["four_layers"], "layers")
    monkeypatch.setattr("studies.common.cache.code_digest", lambda module, root: "of changed code")
    with pytest.raises(RuntimeError, match="four_layers has to be trained"):
        train(["four_layers"], "layers")


def test_the_report_kept_the_best_epoch_and_swept_the_last(models, sizes, monkeypatch):
    looks = iter([1.0, 2.0])
    monkeypatch.setattr(layered_models, "mean_nll", lambda *given: torch.tensor([next(looks)]))
    how = models.published.model_copy(update={"epochs": 2, "patience": 5})
    twice = models.model_copy(update={"published": how})
    run = train_as_published(published_1b(sizes), "two_layers", 42, twice, "routing")
    assert run.best_epoch == 1 and not torch.equal(run.best.heads[0], run.last.heads[0])
