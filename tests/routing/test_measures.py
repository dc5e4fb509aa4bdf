"""The measures of a routed split, recomputed plainly from its tokens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from offramp.exits.risk import MEASURES
from offramp.results.routing import HeldOutPromise
from offramp.routing.executor import Work
from offramp.routing.measures import (
    kept_promise,
    measure_intervals,
    position_shares,
    reliability_bins,
    routed_measures,
)
from offramp.routing.split import CachedSplit, RoutedSplit
from offramp.states.resampling import GroupSums, interval


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
    token_flops = np.where(split.routed.exit == 0, 0.4, 1.0)
    return measured, measure_intervals(
        split.routed, split.cached, split.confidence[0], token_flops, 0.25, split.settings
    )


def test_the_interval_of_flops_lies_around_what_was_executed(split, measures):
    """It is as wide as that of the share that leaves, times what leaving saves."""
    (_, bounds), routed, cached = measures, split.routed, split.cached
    low, high = bounds["flop_saving"]
    assert low < 0.25 < high
    draws = GroupSums(cached.document, {"early": routed.exit == 0}).resample(
        split.settings.bootstrap, split.settings.seed
    )
    share = interval(draws["early"])
    assert high - low == pytest.approx(0.6 * (share[1] - share[0]))


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
    promise = kept_promise(promised("disagreement", tolerance), split.routed, split.cached, split.settings)
    assert promise.test_risk == (split.routed.argmax != split.cached.argmax[1]).mean()
    assert promise.kept == bool(tolerance) and promise.passed == 2


def promised(measure: str, tolerance: float) -> HeldOutPromise:
    return HeldOutPromise(
        measure=measure,
        tolerance=tolerance,
        delta=0.05,
        sequences=10,
        tested=3,
        passed=2,
        held_out_risk=0.1,
        p_value=0.01,
    )


def test_of_two_exits_those_who_leave_add_what_was_cached_and_those_who_stay_the_rest(split):
    routed, cached = split.routed, split.cached
    promise = kept_promise(promised("disagreement", 0.2), routed, cached, split.settings)
    left, differs = routed.exit == 0, routed.argmax != cached.argmax[1]
    assert promise.leavers_risk == pytest.approx((left & differs).mean())
    assert promise.propagation_risk == pytest.approx((~left & differs).mean())
    assert promise.leavers_risk > 0 and promise.propagation_risk > 0
    low, high = promise.propagation_interval
    assert low <= promise.propagation_risk <= high


@examples(max_examples=40, deadline=None)
@given(exits=st.integers(2, 4), measure=st.sampled_from(MEASURES), seed=st.integers(0, 10_000))
def test_the_parts_of_a_risk_add_up_and_an_unchanged_pass_propagates_none(split, exits, measure, seed):
    generator, tokens = np.random.default_rng(seed), 200
    cached = CachedSplit(
        loss=list(generator.exponential(1.0, (exits, tokens)).astype(np.float32)),
        argmax=list(generator.integers(3, size=(exits, tokens))),
        divergence=[np.zeros(tokens, np.float32)] * exits,
        target=generator.integers(3, size=tokens),
        document=np.arange(tokens) // 25,
        position=np.arange(tokens) % 25,
    )
    taken = generator.integers(exits, size=tokens)
    loss, argmax = (np.stack(of)[taken, np.arange(tokens)] for of in (cached.loss, cached.argmax))

    def promise(loss, argmax):
        routed = RoutedSplit(taken, loss, argmax, np.full(tokens, np.nan), Work())
        return kept_promise(promised(measure, 0.5), routed, cached, split.settings)

    unchanged = promise(loss, argmax)
    assert unchanged.propagation_risk == 0 and unchanged.propagation_interval is None
    assert unchanged.leavers_risk == unchanged.test_risk
    assert unchanged.leavers_interval == unchanged.test_interval
    touched = generator.random(tokens) < 0.2
    changed = promise(np.where(touched, loss + 0.5, loss), np.where(touched, (argmax + 1) % 3, argmax))
    assert changed.leavers_risk == unchanged.leavers_risk
    assert changed.leavers_risk + changed.propagation_risk == pytest.approx(changed.test_risk)
    if measure == "nll_increase":
        assert changed.propagation_risk == pytest.approx(0.5 * touched.mean(), rel=1e-5)
    assert changed.kept == (changed.test_risk <= 0.5)


def test_a_promise_is_not_kept_where_propagation_alone_exceeds_it(split):
    """Of two exits nobody leaves, and yet others predict otherwise: a constructed worst case."""
    routed, cached = split.routed, split.cached
    moved = RoutedSplit(
        np.ones_like(routed.exit), routed.loss, 1 + cached.argmax[1], routed.confidence, routed.work
    )
    promise = kept_promise(promised("disagreement", 0.5), moved, cached, split.settings)
    assert (promise.leavers_risk, promise.propagation_risk, promise.kept) == (0, 1, False)


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
