"""Thresholds from held-out tokens: the sweep equals the loop, the path is as said, promises are kept."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom

from offramp.errors import UserError
from offramp.exits.risk import MEASURES, fixed_sequence, p_value, sequence_losses
from offramp.routing.thresholds import (
    HeldOut,
    budget_thresholds,
    exits_taken,
    risk_thresholds,
    sweep,
    threshold_path,
)

COSTS = np.array([0.4, 0.7, 1.05])
LENGTH = 24


def population(sequences: int, seed: int = 0, exits: int = 3) -> HeldOut:
    """Sequences of ``LENGTH`` tokens, of which the less confident disagree with full depth more often.

    They lose more, too. In every tenth sequence nearly all tokens do, whatever their confidence: tokens of a
    sequence fail together.
    """
    generator = np.random.default_rng(seed)
    tokens = sequences * LENGTH
    strange = np.repeat(generator.random(sequences) < 0.1, LENGTH)
    shared = np.repeat(generator.normal(size=sequences), LENGTH)
    hardness = 1 / (1 + np.exp(-(1.2 * shared + generator.normal(size=tokens) - 1)))
    confidence, argmax, loss = [], [], []
    target = generator.integers(2, size=tokens)
    full = np.where(generator.random(tokens) < 0.8, target, 1 - target)
    full_loss = generator.exponential(1.0, tokens)
    for exit in range(exits - 1):
        change = hardness * 0.7**exit
        confidence.append(1 / (1 + np.exp(4 * change - 2 + generator.normal(0, 0.4, tokens))))
        argmax.append(
            np.where(generator.random(tokens) < np.where(strange, 0.9, 0.2 * change), 1 - full, full)
        )
        loss.append(full_loss + np.where(strange, 0.9, 0.3 * change - 0.1) + generator.normal(0, 0.1, tokens))
    return HeldOut(
        np.stack(confidence).astype(np.float32),
        np.stack([*loss, full_loss]).astype(np.float32),
        np.stack([*argmax, full]),
        target,
        np.repeat(np.arange(sequences), LENGTH),
    )


def draw(held: HeldOut, sequences: int, generator: np.random.Generator) -> HeldOut:
    """Independent sequences of a population (with replacement), so that its mean risk is the true one."""
    picked = generator.integers(len(held.target) // LENGTH, size=sequences)
    rows = (picked[:, None] * LENGTH + np.arange(LENGTH)).ravel()
    return HeldOut(
        held.confidence[:, rows],
        held.loss[:, rows],
        held.argmax[:, rows],
        held.target[rows],
        np.repeat(np.arange(sequences), LENGTH),
    )


def true_risk(held: HeldOut, risk: np.ndarray, measure: str, thresholds: list[float]) -> float:
    return sequence_losses(measure, exits_taken(held.confidence, thresholds), risk, held.sequence).mean()


def naive_exits(confidence, thresholds):
    """Token by token, exit by exit."""
    last = len(confidence)
    return [
        next((k for k in range(last) if column[k] >= np.float32(thresholds[k])), last)
        for column in confidence.T
    ]


GRID = st.integers(0, 8).map(
    lambda i: i / 10
)  # a coarse grid: thresholds that equal a confidence are the hard case


@given(st.integers(1, 3), st.integers(1, 30), st.lists(GRID, min_size=1, max_size=12), st.integers(0, 10_000))
def test_the_sweep_equals_one_threshold_after_the_other(earlier, tokens, thresholds, seed):
    generator = np.random.default_rng(seed)
    confidence = (generator.integers(0, 9, (earlier, tokens)) / 10).astype(np.float32)
    values = {
        "loss": generator.normal(size=(earlier + 1, tokens)).astype(np.float32),
        "agrees": generator.random((earlier + 1, tokens)) < 0.5,
    }
    swept = sweep(confidence, values, np.array(thresholds))
    for row, threshold in enumerate(thresholds):
        exits = np.array(naive_exits(confidence, [threshold] * earlier))
        assert (exits_taken(confidence, [threshold] * earlier) == exits).all()
        np.testing.assert_allclose(
            swept["exit_fraction"][row], np.bincount(exits, minlength=earlier + 1) / tokens, atol=1e-12
        )
        for name, value in values.items():
            assert swept[name][row] == pytest.approx(
                value[exits, np.arange(tokens)].mean(dtype=float), abs=1e-6
            )


@given(st.integers(0, 10_000))
def test_the_lower_the_threshold_the_fewer_stay_and_the_more_leave_first(seed):
    confidence = np.random.default_rng(seed).random((2, 50), dtype=np.float32)
    shares = sweep(confidence, {}, np.linspace(1, 0, 40))["exit_fraction"]
    assert (np.diff(shares[:, 0]) >= 0).all()
    assert (np.diff(shares[:, -1]) <= 0).all()
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    assert shares[0].tolist() == [0, 0, 1] and shares[-1].tolist() == [1, 0, 0]


@settings(max_examples=25, deadline=None)
@given(
    st.integers(2, 4), st.integers(5, 60), st.integers(3, 30), st.sampled_from(MEASURES), st.integers(0, 1000)
)
def test_the_path_goes_from_nobody_to_everybody_one_exit_at_a_time(exits, sequences, steps, measure, seed):
    held, costs = population(sequences, seed, exits), np.arange(1, exits + 1) / exits
    path = np.array(threshold_path(held, costs, held.risk(measure), steps))
    taken = [exits_taken(held.confidence, point) for point in path]
    assert (path[0] == 1).all() and (taken[0] == exits - 1).all() and (taken[-1] == 0).all()
    moved = np.diff(path, axis=0)
    assert (moved <= 0).all() and ((moved < 0).sum(axis=1) == 1).all()
    assert (np.diff([costs[exit].mean() for exit in taken]) < 0).all()
    assert len(path) <= steps * (exits - 1) + 1


def test_with_two_exits_the_path_is_the_quantiles_of_the_confidence():
    held = population(50, exits=2)
    path = threshold_path(held, np.array([0.5, 1]), held.risk("disagreement"), steps=6)
    assert [point[0] for point in path[1:]] == np.sort(held.confidence[0])[::-1][199::200].tolist()


def test_the_path_lowers_first_what_costs_no_quality():
    """The middle exit never disagrees, the first always: all leave in the middle before any leaves first."""
    argmax = np.array([[1] * 40, [0] * 40, [0] * 40])
    confidence = np.random.default_rng(0).random((2, 40), dtype=np.float32)
    held = HeldOut(confidence, np.zeros((3, 40)), argmax, np.zeros(40, dtype=int), np.arange(40))
    path = threshold_path(held, COSTS, held.risk("disagreement"), steps=10)
    assert [point[0] for point in path[:11]] == [1.0] * 11
    assert path[10][1] == confidence[1].min()


@pytest.mark.parametrize(
    ("measure", "tolerance"), [("disagreement", 0.1), ("error", 0.08), ("nll_increase", 0.05)]
)
def test_the_promise_is_kept_in_at_least_one_minus_delta_of_repeated_draws_and_lets_tokens_leave(
    measure, tolerance
):
    """Sequences drawn afresh 200 times from a population whose risk at any thresholds is known."""
    delta, draws, sequences, steps = 0.1, 200, 150, 20
    world, generator = population(1000, seed=1), np.random.default_rng(2)
    risk = world.risk(measure)
    assert true_risk(world, risk, measure, [0.0, 0.0]) > 1.4 * tolerance  # the tolerance forbids something
    broken, as_tokens_broken, leaving = [], [], []
    for number in range(draws):
        select, test = draw(world, 40, generator), draw(world, sequences, generator)
        choice = risk_thresholds(
            select, test, COSTS, measure=measure, tolerance=tolerance, delta=delta, steps=steps
        )
        broken.append(true_risk(world, risk, measure, choice.thresholds) > tolerance)
        leaving.append((exits_taken(world.confidence, choice.thresholds) < 2).mean())
        if number < 50:
            mistaken = choice_as_if_tokens_were_independent(select, test, measure, tolerance, delta, steps)
            as_tokens_broken.append(true_risk(world, risk, measure, mistaken) > tolerance)
    allowed = (
        binom.ppf(0.999, draws, delta) / draws
    )  # were delta met exactly, more would be seen once in 1000 runs
    assert np.mean(broken) <= allowed
    assert np.mean(as_tokens_broken) > allowed  # the draws are hard enough to catch a wrong bound
    assert np.mean(np.array(leaving) > 0.05) > 0.9


def choice_as_if_tokens_were_independent(select, test, measure, tolerance, delta, steps) -> list[float]:
    """The same procedure with tokens for sequences: what the promise must not rest on."""
    path, risk = threshold_path(select, COSTS, select.risk(measure), steps), test.risk(measure)
    rows = np.arange(len(test.target))
    losses = (sequence_losses(measure, exits_taken(test.confidence, point), risk, rows) for point in path[1:])
    return path[fixed_sequence((p_value(measure, here, tolerance, delta) for here in losses), delta) + 1]


def test_the_choice_says_what_it_rests_on():
    world, generator = population(2000), np.random.default_rng(0)
    select, test = draw(world, 100, generator), draw(world, 300, generator)
    choice = risk_thresholds(select, test, COSTS, measure="disagreement", tolerance=0.1, delta=0.05)
    assert 0 < choice.passed == choice.tested - 1
    assert choice.sequences == 300 and choice.p_value <= 0.05
    assert choice.risk == pytest.approx(
        true_risk(test, test.risk("disagreement"), "disagreement", choice.thresholds)
    )
    path = threshold_path(select, COSTS, select.risk("disagreement"))
    assert choice.thresholds == path[choice.passed]


def test_when_no_step_can_be_promised_nobody_leaves():
    held = population(100)
    everywhere_wrong = HeldOut(
        held.confidence,
        held.loss,
        np.stack([1 - held.argmax[2], 1 - held.argmax[2], held.argmax[2]]),
        held.target,
        held.sequence,
    )
    choice = risk_thresholds(
        held, everywhere_wrong, COSTS, measure="disagreement", tolerance=0.05, delta=0.05, steps=5
    )
    assert choice.thresholds == [1.0, 1.0] and (choice.passed, choice.tested, choice.risk) == (0, 1, 0.0)
    assert (exits_taken(held.confidence, choice.thresholds) == 2).all()


def test_too_few_test_sequences_and_impossible_promises_are_refused():
    held = population(40)
    with pytest.raises(UserError, match="at least 59 held-out sequences to test on, there are 40"):
        risk_thresholds(held, held, COSTS, measure="disagreement", tolerance=0.05, delta=0.05)
    with pytest.raises(UserError, match=r"exits\.risk\.delta = 0"):
        risk_thresholds(held, held, COSTS, measure="disagreement", tolerance=0.05, delta=0)


@pytest.mark.parametrize("budget", [0.45, 0.7, 0.95, 0.999])
def test_the_budget_is_used_up_and_not_exceeded(budget):
    held = population(300)
    spent = COSTS[exits_taken(held.confidence, budget_thresholds(held, COSTS, budget))].mean()
    assert (
        budget - 0.65 / 100 - 1e-6 <= spent <= budget + 1e-9
    )  # a step is 1 % of the tokens, each saving 0.65 at most


def test_tokens_that_are_kept_in_spend_their_part_of_the_budget():
    held = population(300)
    spent = COSTS[exits_taken(held.confidence, budget_thresholds(held, COSTS, 0.7, kept=0.25))].mean()
    assert 0.7 - 0.65 / 100 <= 0.25 + 0.75 * spent <= 0.7 + 1e-9


def test_within_a_budget_the_path_loses_less_than_one_common_threshold():
    held = population(2000)
    loss = sweep(
        held.confidence,
        {"loss": held.loss, "cost": np.broadcast_to(COSTS[:, None], held.loss.shape)},
        np.linspace(0, 1, 1000),
    )
    for budget in (0.5, 0.7, 0.9):
        exits = exits_taken(held.confidence, budget_thresholds(held, COSTS, budget))
        common = loss["loss"][loss["cost"] <= budget].min()
        assert np.take_along_axis(held.loss, exits[None], axis=0).mean() < common + 0.002


def test_a_budget_below_the_first_exit_names_the_least_possible():
    with pytest.raises(UserError, match=r"budget = 0\.3: .* fraction is 0\.4000; give at least 0\.4000"):
        budget_thresholds(population(10), COSTS, 0.3)
    with pytest.raises(UserError, match=r"budget = 1\.2: give a fraction"):
        budget_thresholds(population(10), COSTS, 1.2)


def test_held_out_tokens_must_fit_together_and_stay_below_certainty():
    held = population(5)
    with pytest.raises(ValueError, match="target has shape"):
        HeldOut(held.confidence, held.loss, held.argmax, held.target[:-1], held.sequence)
    with pytest.raises(ValueError, match="below 1"):
        HeldOut(held.confidence + 1, held.loss, held.argmax, held.target, held.sequence)
