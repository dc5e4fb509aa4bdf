"""The measures of a routed split, recomputed plainly from its tokens."""

from __future__ import annotations

import numpy as np
import pytest

from offramp.results.routing import HeldOutPromise
from offramp.routing.measures import (
    kept_promise,
    measure_intervals,
    position_shares,
    reliability_bins,
    routed_measures,
)


@pytest.fixture(scope="module")
def measures(split):
    """Measures and intervals, where every token stands for two bytes."""
    measured = routed_measures(
        split.model,
        split.routed,
        split.cached,
        confidence=split.confidence[0],
        decision_flops=split.policy.flops_per_token,
        window=split.windows.window,
        bytes_of_token=np.full(split.model.config.vocab_size, 2),
    )
    return measured, measure_intervals(split.routed, split.cached, split.confidence[0], split.settings)


def test_quality_is_that_of_each_token_at_the_exit_it_took(split, measures):
    (measured, _), routed, cached = measures, split.routed, split.cached
    nll = routed.loss.astype(np.float64).mean()
    assert measured.ppl == pytest.approx(np.exp(nll))
    assert measured.accuracy == (routed.argmax == cached.target).mean()
    assert measured.agreement == (routed.argmax == cached.argmax[1]).mean()
    assert measured.shallow_ratio == measured.exit_fraction["exit_0"] == (routed.exit == 0).mean()
    assert 0.3 < measured.shallow_ratio < 0.7
    assert measured.bits_per_byte == pytest.approx(nll / np.log(2) / 2)


def test_what_leaving_costs_is_parted_into_the_exits_taken_and_what_others_miss(split, measures):
    (measured, _), cached = measures, split.cached
    chosen = np.where(split.routed.exit == 0, cached.loss[0], cached.loss[1]).astype(np.float64).mean()
    assert np.log(measured.ppl) == pytest.approx(chosen + measured.propagation_nll)
    assert measured.ppl_increase == pytest.approx(measured.ppl / np.exp(cached.loss[1].mean()) - 1, rel=1e-4)


def test_the_first_exit_is_judged_on_every_token(split, measures):
    (measured, _), loss = measures, split.cached.loss[0]
    order = np.argsort(-split.confidence[0], kind="stable")
    easy, hard = np.split(loss[order], [len(order) // 2])
    assert measured.loss_gap == pytest.approx(hard.mean() - easy.mean(), rel=1e-4)
    ranked = np.sort(loss)
    best = ranked[len(ranked) // 2 :].mean() - ranked[: len(ranked) // 2].mean()
    assert measured.oracle_share == pytest.approx(measured.loss_gap / best, rel=1e-4)


def test_intervals_hold_the_values(measures):
    measured, intervals = measures
    for name in ("ppl", "accuracy", "ppl_increase"):
        low, high = intervals[name]
        assert low <= getattr(measured, name) <= high


@pytest.mark.parametrize("tolerance", [0.0, 1.0])
def test_a_promise_is_kept_where_the_measured_risk_is_within_its_tolerance(split, tolerance):
    held_out = HeldOutPromise(
        measure="disagreement",
        tolerance=tolerance,
        delta=0.05,
        sequences=10,
        tested=3,
        passed=2,
        held_out_risk=0.1,
        p_value=0.01,
    )
    promise = kept_promise(held_out, split.routed, split.cached, split.settings)
    assert promise.test_risk == (split.routed.argmax != split.cached.argmax[1]).mean()
    assert promise.kept == bool(tolerance) and promise.passed == 2


def test_reliability_counts_every_token_that_arrived(split):
    bins = reliability_bins(split.routed, split.cached, split.confidence)
    assert {row.exit for row in bins} == {0}
    assert sum(row.tokens for row in bins) == len(split.routed.exit)


def test_shares_of_a_position_add_up_to_one(split):
    rows = position_shares(split.routed.exit, split.windows.window, split.cached.last)
    totals = np.zeros(split.windows.window)
    for row in rows:
        totals[row.position] += row.share
    np.testing.assert_allclose(totals, 1)
