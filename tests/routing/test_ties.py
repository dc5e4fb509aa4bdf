"""Confidences that tie: no rule lets out more than it was asked to, and what is promised is kept.

Signals tie in earnest: patience has as many values as there are exits before it and is constant at the first,
the largest probability is 1 for many tokens of a large model, and a classifier without hidden units that
learned nothing says the same of all.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from offramp.exits.calibration import fit_calibrator
from offramp.exits.risk import MEASURES, p_value, sequence_losses
from offramp.exits.signals import SIGNALS
from offramp.routing.policies import auto_thresholds, exits_by_share
from offramp.routing.thresholds import (
    NOBODY,
    HeldOut,
    budget_thresholds,
    exits_taken,
    risk_thresholds,
    threshold_path,
)
from tests.routing.test_thresholds import COSTS, draw, population, true_risk

LEVELS = st.integers(1, 4)
"""Different confidences: very few, or one."""
SHAPES = {"exits": st.integers(2, 4), "tokens": st.integers(1, 60), "seed": st.integers(0, 10_000)}


def tied(exits: int, tokens: int, levels: int, seed: int) -> HeldOut:
    """Tokens of sequences of four, with so many different confidences at each exit."""
    generator = np.random.default_rng(seed)
    loss = generator.exponential(1.0, (exits, tokens)).astype(np.float32)
    return HeldOut(
        (generator.integers(0, levels, (exits - 1, tokens)) / 10 + 0.3).astype(np.float32),
        loss,
        generator.integers(2, size=(exits, tokens)),
        generator.integers(2, size=tokens),
        np.arange(tokens) // 4,
    )


def raised(held: HeldOut, thresholds: list[float], exit: int) -> list[float]:
    """The same with the next higher confidence for the threshold of an exit; nobody leaves at the last."""
    row = held.confidence[exit]
    higher = row[row > np.float32(thresholds[exit])]
    return [*thresholds[:exit], float(higher.min()) if len(higher) else NOBODY, *thresholds[exit + 1 :]]


@settings(deadline=None)
@given(levels=LEVELS, ratio=st.floats(0.01, 0.99), **SHAPES)
def test_auto_lets_out_the_share_asked_for_and_no_more(exits, tokens, seed, levels, ratio):
    """At each exit of those who arrive there, up to the rounding to a whole token."""
    held = tied(exits, tokens, levels, seed)
    thresholds = auto_thresholds(held.confidence, ratio)
    taken = exits_taken(held.confidence, thresholds)
    for exit in range(exits - 1):
        arrived, left = (taken >= exit).sum(), (taken == exit).sum()
        assert left <= np.ceil(ratio * arrived - 1e-9)


@given(ratio=st.floats(0.01, 0.99), tokens=st.integers(1, 200), seed=st.integers(0, 10_000))
def test_auto_is_the_quantile_where_nothing_ties(ratio, tokens, seed):
    """As in the report exit-labels."""
    confidence = np.random.default_rng(seed).permutation(tokens)[None] / (2.0 * tokens)
    assert auto_thresholds(confidence, ratio) == [np.quantile(confidence[0], 1 - ratio)]


@settings(deadline=None)
@given(levels=LEVELS, budget=st.floats(0.41, 0.99), kept=st.sampled_from([0.0, 0.01]), **SHAPES)
def test_budget_is_kept_and_not_undercut_by_a_whole_step(exits, tokens, seed, levels, budget, kept):
    """One step fewer at the exit that was lowered last, and the budget would not be kept."""
    held, costs = tied(exits, tokens, levels, seed), np.linspace(0.4, 1.05, exits)
    if kept + (1 - kept) * costs[0] > budget:
        return

    def spent(thresholds: list[float]) -> float:
        return kept + (1 - kept) * costs[exits_taken(held.confidence, thresholds)].mean()

    thresholds = budget_thresholds(held, costs, budget, kept, steps=1000)
    assert spent(thresholds) <= budget + 1e-9
    assert any(spent(raised(held, thresholds, exit)) > budget for exit in range(exits - 1))


def patient(tokens: int, agreeing: float) -> HeldOut:
    """Patience of three exits, calibrated: constant at the first, 0 or 1 at the second.

    The first exit is bad, the second good where it agrees with the first.
    """
    generator = np.random.default_rng(0)
    agrees = generator.random(tokens) < agreeing
    raw = np.stack([np.zeros(tokens), agrees]).astype(np.float32)
    right = np.stack([generator.random(tokens) < 0.5, agrees])
    confidence = [
        fit_calibrator(values, hits)(torch.from_numpy(values)).numpy() for values, hits in zip(raw, right)
    ]
    loss = np.stack([np.full(tokens, 3.0), np.where(agrees, 1.1, 2.0), np.ones(tokens)]).astype(np.float32)
    argmax = np.stack([~right[0], ~right[1], np.zeros(tokens, bool)]).astype(int)
    return HeldOut(np.stack(confidence), loss, argmax, np.zeros(tokens, int), np.arange(tokens) // 4)


def test_patience_lets_nobody_out_at_the_first_exit_where_it_says_nothing():
    """All tokens left there under auto, and under a budget that the second exit can meet."""
    held = patient(4000, agreeing=0.7)
    auto = auto_thresholds(held.confidence, 0.5)
    assert auto[0] == NOBODY  # all alike: half of them cannot be told from the others
    assert (exits_taken(held.confidence, auto) == 2).all()  # 70 % are alike at the second, too
    half = auto_thresholds(held.confidence, 0.75)
    assert np.bincount(exits_taken(held.confidence, half), minlength=3) / 4000 == pytest.approx(
        [0, 0.7, 0.3], abs=0.02
    )
    within = budget_thresholds(held, COSTS, 0.85)
    assert np.bincount(exits_taken(held.confidence, within), minlength=3) / 4000 == pytest.approx(
        [0, 0.7, 0.3], abs=0.02
    )


def test_a_budget_that_ties_overshoot_is_met_where_it_costs_least():
    """All at the first exit or all at the second: both are more than needed, and the second is better."""
    held = patient(4000, agreeing=0.7)
    within = budget_thresholds(held, COSTS, 0.72)
    assert (exits_taken(held.confidence, within) == 1).all()
    only_way = budget_thresholds(held, COSTS, 0.5)
    assert (exits_taken(held.confidence, only_way) == 0).all()


@settings(deadline=None)
@given(
    levels=LEVELS,
    measure=st.sampled_from(MEASURES),
    tolerance=st.floats(0.2, 0.9),
    seed=st.integers(0, 10_000),
    exits=st.integers(2, 4),
)
def test_risk_rests_on_all_who_leave_also_those_who_tie(levels, measure, tolerance, seed, exits):
    """The evidence is of exactly the tokens that leave at the thresholds given out."""
    select, test = (tied(exits, 400, levels, seed + offset) for offset in (0, 1))
    costs = np.linspace(0.4, 1.05, exits)
    choice = risk_thresholds(select, test, costs, measure=measure, tolerance=tolerance, delta=0.1)
    taken = exits_taken(test.confidence, choice.thresholds)
    if not choice.passed:
        assert (taken == exits - 1).all()
        return
    losses = sequence_losses(measure, taken, test.risk(measure), test.sequence)
    assert p_value(measure, losses, tolerance, 0.1) <= 0.1
    assert choice.risk == pytest.approx(losses.mean())


@pytest.mark.parametrize("levels", [2, 4])
def test_the_promise_is_kept_where_confidences_are_few(levels):
    """Sequences drawn afresh from a population whose risk at any thresholds is known."""
    delta, tolerance, draws = 0.1, 0.1, 100
    world, generator = population(1000, seed=1), np.random.default_rng(2)
    coarse = (np.floor(world.confidence * levels) / levels).astype(np.float32)
    world = HeldOut(coarse, world.loss, world.argmax, world.target, world.sequence)
    risk, broken = world.risk("disagreement"), 0
    for _ in range(draws):
        select, test = draw(world, 40, generator), draw(world, 150, generator)
        choice = risk_thresholds(
            select, test, COSTS, measure="disagreement", tolerance=tolerance, delta=delta, steps=20
        )
        broken += true_risk(world, risk, "disagreement", choice.thresholds) > tolerance
    assert broken <= binom.ppf(0.999, draws, delta)


@settings(deadline=None)
@given(levels=LEVELS, fraction=st.floats(0, 1), **SHAPES)
def test_shares_of_the_curve_are_exact(exits, tokens, seed, levels, fraction):
    held = tied(exits, tokens, levels, seed)
    counts, waiting = [], tokens
    for _ in range(exits - 1):
        counts.append(round(fraction * waiting))
        waiting -= counts[-1]
    taken = exits_by_share(held.confidence, counts)
    assert np.bincount(taken, minlength=exits).tolist() == [*counts, waiting]


@settings(deadline=None)
@given(levels=LEVELS, threshold=st.integers(0, 10), **SHAPES)
def test_a_number_lets_out_who_is_as_sure_as_that(exits, tokens, seed, levels, threshold):
    held = tied(exits, tokens, levels, seed)
    bar = np.float32(threshold / 10)
    taken = exits_taken(held.confidence, [threshold / 10] * (exits - 1))
    for exit in range(exits - 1):
        assert (held.confidence[exit][taken == exit] >= bar).all()
        assert (held.confidence[exit][taken > exit] < bar).all()


@settings(deadline=None, max_examples=40)
@given(
    signal=st.sampled_from([*SIGNALS, "learned"]),
    method=st.sampled_from(["isotonic", "temperature"]),
    levels=LEVELS,
    seed=st.integers(0, 1000),
    ratio=st.floats(0.05, 0.95),
)
def test_calibrated_signals_keep_their_ties_and_stay_below_the_threshold_of_nobody(
    signal, method, levels, seed, ratio
):
    """Whatever the signal's scale: equal signals are equally sure, higher ones surer, and none reaches 1."""
    generator = np.random.default_rng(seed)
    raw = generator.integers(0, levels, 300)
    scale = {"max_prob": 1.0 / levels, "patience": 1.0 / levels, "saturation": 1e-7, "max_logit": 40.0}
    values = (raw * scale.get(signal, 1.0)).astype(np.float32)
    calibrator = fit_calibrator(values, generator.random(300) < 0.5, method)
    confidence = calibrator(torch.from_numpy(values)).numpy()
    assert np.isfinite(confidence).all() and confidence.min() >= 0 and confidence.max() < NOBODY
    assert len(np.unique(confidence)) <= len(np.unique(raw))
    assert (np.diff([confidence[raw == level][0] for level in np.unique(raw)]) >= 0).all()
    left = (confidence >= np.float32(auto_thresholds(confidence[None], ratio)[0])).sum()
    assert left <= np.ceil(ratio * 300 - 1e-9)


def test_the_path_of_tied_confidences_ends_where_all_leave():
    held = tied(3, 50, 1, 0)
    path = threshold_path(held, COSTS, held.risk("disagreement"))
    assert (exits_taken(held.confidence, path[0]) == 2).all()
    assert (exits_taken(held.confidence, path[-1]) == 0).all()
