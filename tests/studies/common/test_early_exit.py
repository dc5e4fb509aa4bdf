"""Routing with one early exit: executed, it lies between its fixed depths; as published, it skips nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from offramp.models.native import BlockwiseLM
from studies.common.early_exit import (
    NOBODY,
    Windows,
    as_published,
    depth_flops,
    execute,
    execute_all_early,
    quantile_threshold,
    share_within,
)
from studies.common.layer_statistics import LayerStatistics, layer_statistics
from studies.common.layered_models import LayeredModels, build
from studies.common.text import StudyText
from tests.fixtures.tiny_studies import tiny_job

VOCABULARY, EXIT = 97, 2


@pytest.fixture(scope="module")
def models() -> LayeredModels:
    text = StudyText("sotu", "made up", [], [])
    return LayeredModels.of(tiny_job("routing_losses", text, "corrected", Path()).shared["layered_models"])


@pytest.fixture(scope="module")
def model(models) -> BlockwiseLM:
    torch.manual_seed(0)
    return build(VOCABULARY, 4, models, 1.0).eval()


@pytest.fixture(scope="module")
def windows() -> Windows:
    symbols = torch.randint(VOCABULARY, (20, 65), generator=torch.Generator().manual_seed(0))
    return symbols[:, :-1], symbols[:, 1:]


def test_executed_routing_is_between_its_fixed_depths(model, models, windows):
    statistics = layer_statistics(model, *windows)
    everybody, nobody = execute_all_early(model, EXIT, windows), execute(model, EXIT, windows)
    np.testing.assert_allclose(everybody.loss, statistics.loss[1], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(nobody.loss, statistics.loss[3], rtol=1e-4, atol=1e-4)
    assert (everybody.layers, everybody.shallow) == (0.5, 1.0)
    assert (nobody.layers, nobody.shallow, nobody.flops) == (1.0, 0.0, 1.0)
    two_of_four = depth_flops(2, VOCABULARY, models) / depth_flops(4, VOCABULARY, models)
    assert everybody.flops == pytest.approx(two_of_four)


def test_tokens_that_leave_have_the_loss_of_the_exit(model, windows):
    statistics = layer_statistics(model, *windows)
    half = execute(model, EXIT, windows, quantile_threshold(statistics.max_prob[1], 0.5))
    assert half.shallow == pytest.approx(0.5, abs=0.02) and half.layers == pytest.approx(0.75, abs=0.01)
    np.testing.assert_allclose(half.loss[half.early], statistics.loss[1][half.early], rtol=1e-4, atol=1e-4)


def test_asking_costs_a_readout_of_every_token(model, windows):
    asked = execute(model, EXIT, windows, NOBODY)
    assert asked.shallow == 0 and asked.flops > 1


def test_exits_laid_down_are_taken(model, windows):
    leaves = np.random.default_rng(0).random(windows[0].numel()) < 0.3
    assert (execute(model, EXIT, windows, leaves=leaves).early == leaves).all()


def test_a_budget_is_met(model, windows):
    confidence = layer_statistics(model, *windows).max_prob[1]
    share = share_within(model, EXIT, windows, confidence, 0.85)
    way = execute(model, EXIT, windows, quantile_threshold(confidence, share))
    assert way.flops == pytest.approx(0.85, abs=0.02)


def test_the_report_counts_layers_and_skips_none():
    confidence, blank = [0.9, 0.8, 0.3, 0.2], np.zeros((2, 4))
    first, last, target = [1, 2, 3, 4], [1, 0, 3, 5], [1, 1, 1, 5]
    statistics = LayerStatistics(
        np.array([first, last], float),
        np.array([first, last]),
        np.array([confidence, confidence]),
        blank,
        blank,
        np.array(target),
    )
    way = as_published(statistics, 1, 0.8)
    assert way.early.tolist() == [True, True, False, False]
    assert way.right.tolist() == [True, False, False, True]
    assert way.layers == pytest.approx((0.5 + 0.5 + 1 + 1) / 4) and way.flops == 1
