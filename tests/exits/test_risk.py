"""The statistics of a promise: p-values that are never too small, and tests in sequence that stop in time."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from offramp.errors import UserError
from offramp.exits.risk import (
    MEASURES,
    betting,
    fixed_sequence,
    hoeffding_bentkus,
    p_value,
    require_sequences,
    sequence_losses,
    sequences_needed,
    token_risk,
)


@given(st.integers(1, 400), st.floats(0.01, 0.99), st.data())
def test_hoeffding_bentkus_is_never_surer_than_the_exact_binomial_test(n, tolerance, data):
    count = data.draw(st.integers(0, n))
    p = hoeffding_bentkus(count / n, n, tolerance)
    assert binom.cdf(count, n, tolerance) * (1 - 1e-9) <= p <= 1


def test_hoeffding_bentkus_is_the_smaller_of_its_two_bounds():
    n, tolerance = 200, 0.1
    few, many = 0.01, 0.09
    entropy = few * math.log(few / tolerance) + (1 - few) * math.log((1 - few) / (1 - tolerance))
    assert hoeffding_bentkus(few, n, tolerance) == pytest.approx(
        min(math.exp(-n * entropy), math.e * binom.cdf(2, n, 0.1))
    )
    assert hoeffding_bentkus(many, n, tolerance) <= math.e * binom.cdf(18, n, tolerance)
    assert hoeffding_bentkus(0.2, n, tolerance) == 1  # more than the tolerance seen: no evidence at all


@pytest.mark.parametrize("expectation", [0.1, 0.5, 0.8])
def test_betting_p_values_are_valid_exactly_for_every_outcome_of_twelve_values(expectation):
    """All 4096 outcomes of values 0 and 1 whose expectation is the tolerance: P(p <= a) <= a for every a."""
    outcomes = list(itertools.product([0.0, 1.0], repeat=12))
    probability = np.array([expectation ** sum(o) * (1 - expectation) ** (12 - sum(o)) for o in outcomes])
    p = np.array([betting(np.array(o), expectation, 0, 1) for o in outcomes])
    order = np.argsort(p)
    last_of_ties = np.append(np.diff(p[order]) > 0, True)
    assert (np.cumsum(probability[order]) <= p[order] + 1e-12)[last_of_ties].all()
    assert p.min() < 0.6  # and not always 1


def test_betting_equals_the_wealth_of_a_gambler_who_looks_only_back():
    values, tolerance, low, high, level = (
        np.random.default_rng(0).uniform(-0.3, 0.2, 50),
        0.05,
        -1.0,
        1.0,
        0.1,
    )
    goal, seen, squares, wealth, best = (tolerance - low) / (high - low), [], [], 1.0, 1.0
    squares.append(goal * (1 - goal))
    for value in values:
        x = (value - low) / (high - low)
        bet = min(
            math.sqrt(2 * math.log(1 / level) / (len(values) * sum(squares) / len(squares))), 0.9 / (1 - goal)
        )
        wealth *= 1 + bet * (goal - x)
        best = max(best, wealth)
        seen.append(x)
        squares.append((x - (goal + sum(seen)) / (len(seen) + 1)) ** 2)
    assert betting(values, tolerance, low, high, level) == pytest.approx(1 / best)


def test_betting_uses_a_small_variance_in_a_wide_range():
    values = np.random.default_rng(1).normal(0.02, 0.03, 200)
    assert betting(values, 0.05, -1, 1) < 0.01
    assert (
        hoeffding_bentkus((values.mean() + 1) / 2, 200, 0.525) > 0.5
    )  # the same question, asked of the range alone


def test_fixed_sequence_stops_at_the_first_that_fails_and_computes_no_further():
    drawn = []

    def p_values():
        for p in (0.001, 0.05, 0.06, 0.0):
            drawn.append(p)
            yield p

    assert fixed_sequence(p_values(), 0.05) == 1
    assert drawn == [0.001, 0.05, 0.06]
    assert fixed_sequence([0.2, 0.0], 0.05) == -1
    assert fixed_sequence([], 0.05) == -1


def test_what_a_token_risks_at_each_exit():
    argmax = np.array([[7, 7, 2, 3], [7, 1, 2, 9]])  # exit 0, full depth
    target = np.array([7, 1, 9, 3])
    loss = np.array([[1.0, 3.0, 2.0, 0.5], [1.5, 1.0, 2.0, 4.0]], dtype=np.float32)
    assert token_risk("disagreement", loss, argmax, target).tolist() == [[0, 1, 0, 1], [0, 0, 0, 0]]
    assert token_risk("error", loss, argmax, target).tolist() == [[0, 1, 0, 0], [0, 0, 0, 0]]
    assert token_risk("nll_increase", loss, argmax, target).tolist() == [[-0.5, 2, 0, -3.5], [0, 0, 0, 0]]


@given(st.integers(0, 1000))
def test_error_risk_bounds_the_rise_of_the_error_rate(seed):
    generator = np.random.default_rng(seed)
    argmax, target = generator.integers(3, size=(2, 3, 40))[0], generator.integers(3, size=40)
    exits = generator.integers(3, size=40)
    rise = (argmax[exits, np.arange(40)] != target).mean() - (argmax[-1] != target).mean()
    risk = token_risk("error", np.zeros((3, 40)), argmax, target)
    assert rise <= sequence_losses("error", exits, risk, np.zeros(40, dtype=int))[0] + 1e-12


def test_sequence_losses_are_means_per_sequence_clipped_for_the_loss():
    risk = np.array([[1.0, 0.0, 5.0, 0.3], [0.0, 0.0, 0.0, 0.0]])
    exits, sequence = np.array([0, 0, 0, 1]), np.array([1, 1, 0, 1])
    assert sequence_losses("disagreement", exits, risk, sequence).tolist() == [5.0, 1 / 3]
    assert sequence_losses("nll_increase", exits, risk, sequence).tolist() == [1.0, 1 / 3]


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize(("tolerance", "delta"), [(0.05, 0.05), (0.01, 0.1), (0.3, 0.2), (0.9, 0.5)])
def test_sequences_needed_is_the_smallest_number_that_can_reject(measure, tolerance, delta):
    needed = sequences_needed(measure, tolerance, delta)
    assert p_value(measure, np.zeros(needed), tolerance, delta) <= delta + 1e-12
    if needed > 1:
        assert p_value(measure, np.zeros(needed - 1), tolerance, delta) > delta


def test_too_few_sequences_are_refused_with_the_number_needed():
    require_sequences(59, "disagreement", 0.05, 0.05)
    with pytest.raises(UserError, match=r"at least 59 held-out sequences .* there are 58"):
        require_sequences(58, "disagreement", 0.05, 0.05)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("disagreement", 0.0, 0.1), "exits.risk.tolerance = 0.0"),
        (("error", 1, 0.1), "exits.risk.tolerance = 1"),
        (("error", 0.1, 1.0), "exits.risk.delta = 1.0"),
        (("error", 0.1, -0.1), "exits.risk.delta = -0.1"),
        (("error", float("nan"), 0.1), "exits.risk.tolerance = nan"),
        (("loss", 0.1, 0.1), "exits.risk.measure = 'loss'"),
    ],
)
def test_promises_that_cannot_be_tested_are_refused(arguments, named):
    with pytest.raises(UserError, match=named):
        sequences_needed(*arguments)
