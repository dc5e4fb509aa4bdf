"""Routing with one early exit: executed, it lies between its fixed depths; as published, it skips nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from offramp.models.native import BlockwiseLM
from studies.common.early_exit import (
    DRAWS,
    NOBODY,
    Windows,
    as_published,
    depth_flops,
    execute,
    execute_all_early,
    expected_loss,
    path_values,
    quantile_threshold,
    random_exits_nll,
    share_within,
    signal_values,
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
        blank,
        np.array(target),
    )
    way = as_published(statistics, 1, 0.8)
    assert way.early.tolist() == [True, True, False, False]
    assert way.right.tolist() == [True, False, False, True]
    assert way.layers == pytest.approx((0.5 + 0.5 + 1 + 1) / 4) and way.flops == 1


def of(shallow: np.ndarray, deep: np.ndarray, confidence: np.ndarray, apart: np.ndarray) -> LayerStatistics:
    """Two layers with losses (N,), the confidence and the divergence of the first."""
    blank = np.zeros((2, len(shallow)))
    return LayerStatistics(
        loss=np.stack([shallow, deep]),
        argmax=blank,
        max_prob=np.stack([confidence, confidence]),
        step=blank,
        turn=blank,
        divergence=np.stack([apart, np.zeros(len(apart))]),
        target=blank[0],
    )


def test_random_exits_are_an_expectation_over_draws():
    random = np.random.default_rng(0)
    shallow, deep = random.gamma(2, 1, 500), random.gamma(1, 1, 500)
    draws = [np.where(random.random(500) < 0.3, shallow, deep).mean() for _ in range(4_000)]
    assert expected_loss(shallow, deep, 0.3) == pytest.approx(
        np.mean(draws), abs=4 * np.std(draws) / 4_000**0.5
    )
    assert expected_loss(shallow, deep, 0) == pytest.approx(deep.mean())
    assert expected_loss(shallow, deep, 1) == pytest.approx(shallow.mean())


def test_executed_random_exits_are_the_mean_of_executed_draws(model, windows):
    statistics, random = layer_statistics(model, *windows), np.random.default_rng(1)
    leaves, added = np.arange(windows[0].numel()) % 2 == 0, []
    for _ in range(60):
        leaves = random.permutation(leaves)
        as_if_alone = np.where(leaves, statistics.loss[1], statistics.loss[3]).mean()
        added.append(execute(model, EXIT, windows, leaves=leaves).nll - as_if_alone)
    closed = expected_loss(statistics.loss[1], statistics.loss[3], 0.5)
    expected = random_exits_nll(model, EXIT, windows, statistics, 0.5)
    assert expected - closed == pytest.approx(np.mean(added), abs=5 * float(np.std(added)) / DRAWS**0.5)
    assert expected != closed
    assert random_exits_nll(model, EXIT, windows, statistics, 0) == pytest.approx(
        execute(model, EXIT, windows).nll, abs=1e-4
    )


def test_a_signal_stands_between_random_exits_and_both_oracles():
    """Going on buys each token its divergence on average; confidence knows half of the tokens' places."""
    random = np.random.default_rng(0)
    apart = random.gamma(1, 1, 4_000)
    gain = apart + random.standard_normal(4_000)
    deep = random.gamma(2, 1, 4_000)
    known = np.where(random.random(4_000) < 0.5, apart, random.permutation(apart))
    values = signal_values(of(deep + gain, deep, -known, apart), 1, {"half": 0.5, "few": 0.1})
    for share in ("half", "few"):
        signal, divergence, best = (
            values[f"ahead.{way}.{share}"] for way in ("signal", "divergence_oracle", "gain_oracle")
        )
        assert 0 < signal < divergence < best
        assert values[f"attained.{share}"] == pytest.approx(signal / divergence)
        assert values[f"headroom.{share}"] == pytest.approx(signal / best)
    everything = signal_values(of(deep + gain, deep, -apart, apart), 1, {"half": 0.5})
    assert everything["attained.half"] == 1 > everything["headroom.half"]


def test_nothing_is_attained_of_an_oracle_that_is_not_ahead():
    gain = np.linspace(-1, 1, 100)  # full depth is most wrong where it differs most from the exit
    values = signal_values(of(gain + 2, np.full(100, 2.0), gain, -gain), 1, {"half": 0.5})
    assert values["ahead.divergence_oracle.half"] < 0 and values["attained.half"] is None
    assert values["ahead.gain_oracle.half"] > 0 > values["headroom.half"]


def test_paths_specialise_where_each_exit_is_better_on_its_half():
    confidence, deep = np.array([0.9, 0.8, 0.2, 0.1]), np.array([1.0, 1.0, 3.0, 3.0])
    values = path_values(of(deep + np.array([-0.5, -0.5, 1.0, 2.0]), deep, confidence, np.zeros(4)), 1)
    assert values["paths.shallow_minus_deep"] == pytest.approx(-0.5)
    assert values["paths.deep_minus_shallow"] == pytest.approx(-1.5)
    assert values["paths.specialisation"] == pytest.approx(2.0)
    assert values["difficulty.gap"] == pytest.approx(2.0) and values["difficulty.r"] < -0.9
