"""Oracle bounds against a linear programme, every choice of exits there is, and every price by itself."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from offramp.analysis.oracle import (
    RISES,
    Path,
    attainable,
    can_leave,
    largest_saving,
    least_loss,
    random_savings,
    same_prediction,
    settled_at,
)

COSTS = np.array([0.3, 0.65, 1.0])


def losses(seed, tokens, exits=3):
    return np.random.default_rng(seed).gamma(2.0, 1.5, (exits, tokens))


def every_choice(loss):
    """(saving, mean loss) of each of the K**N ways to place the tokens."""
    tokens = np.arange(loss.shape[1])
    for exits in itertools.product(range(len(loss)), repeat=loss.shape[1]):
        yield 1 - COSTS[list(exits)].mean(), loss[list(exits), tokens].mean()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), tokens=st.integers(1, 40), rise=st.sampled_from([0.0, 0.01, 0.3]))
def test_the_largest_saving_is_the_optimum_of_the_linear_programme(seed, tokens, rise):
    loss = losses(seed, tokens)
    limit = loss[-1].mean() + np.log1p(rise)
    one_exit_each = np.tile(np.eye(tokens), 3)  # variables x[k, n], by exit and then by token
    solved = linprog(
        np.repeat(COSTS, tokens) / tokens,
        A_ub=loss.reshape(1, -1) / tokens,
        b_ub=[limit],
        A_eq=one_exit_each,
        b_eq=np.ones(tokens),
        bounds=(0, 1),
    )
    bound = largest_saving(loss, COSTS, rise)
    assert bound.flop_saving == pytest.approx(1 - solved.fun, abs=1e-6)
    assert bound.ppl <= np.exp(limit) * (1 + 1e-9)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), tokens=st.integers(1, 6))
def test_no_choice_of_exits_exceeds_it_and_one_comes_within_a_token(seed, tokens):
    loss = losses(seed, tokens)
    best = max(saving for saving, nll in every_choice(loss) if nll <= loss[-1].mean() + 1e-12)
    bound = largest_saving(loss, COSTS)
    assert best - 1e-9 <= bound.flop_saving <= best + (1 - COSTS[0]) / tokens + 1e-9


def test_where_shallow_is_better_for_all_everything_leaves_at_the_first_exit():
    loss = np.array([[1.0, 1.0], [2.0, 2.0], [3.0, 3.0]])
    assert largest_saving(loss, COSTS).flop_saving == pytest.approx(0.7)
    assert least_loss(loss, COSTS).ppl == pytest.approx(np.e)


def test_each_token_at_its_exit_of_least_loss():
    loss = np.array(
        [[1.0, 5.0, 2.0], [2.0, 4.0, 2.0], [3.0, 3.0, 2.0]]
    )  # the last is the same everywhere: it leaves first
    bound = least_loss(loss, COSTS)
    assert bound.flop_saving == pytest.approx(1 - (0.3 + 1.0 + 0.3) / 3)
    assert bound.ppl == pytest.approx(np.exp((1 + 3 + 2) / 3))


def test_a_prediction_that_is_left_again_has_not_settled():
    argmax = np.array([[7, 7, 1, 2], [7, 3, 7, 2], [7, 7, 7, 7]])
    assert settled_at(argmax).tolist() == [0, 2, 1, 2]
    assert same_prediction(np.ones((3, 4)), argmax, COSTS).flop_saving == pytest.approx(
        1 - (0.3 + 1 + 0.65 + 1) / 4
    )


def divergences(seed, tokens, exits=3):
    """Larger the shallower the exit, on the whole, and 0 at full depth."""
    random = np.random.default_rng(seed + 1).gamma(0.5, 1.0, (exits, tokens))
    return random * np.linspace(1, 0, exits)[:, None]


def most_saved(value, loss, rise, costs=COSTS):
    """The largest saving of whole tokens, over one price of every stretch in which no token moves."""
    cheaper = [(k, j) for k in range(len(value)) for j in range(len(value)) if costs[j] < costs[k]]
    prices = np.unique([(value[j] - value[k]) / (costs[k] - costs[j]) for k, j in cheaper])
    prices = prices[prices > 0]
    between = [*(prices[:-1] + prices[1:]) / 2, prices[-1] + 1, prices[0] / 2]
    tokens, saved = np.arange(loss.shape[1]), [0.0]
    for price in between:
        exits = (value + price * costs[:, None]).argmin(0)
        if loss[exits, tokens].mean() <= loss[-1].mean() + np.log1p(rise):
            saved.append(1 - costs[exits].mean())
    return max(saved)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    tokens=st.integers(1, 30),
    rise=st.sampled_from([0.0, 0.01, 0.3]),
    exits=st.sampled_from([2, 3, 5]),
)
def test_the_attainable_is_the_most_that_any_price_saves_and_at_most_a_token_more(seed, tokens, rise, exits):
    value, loss, costs = (
        divergences(seed, tokens, exits),
        losses(seed, tokens, exits),
        np.linspace(0.3, 1, exits),
    )
    (point,) = Path.of(value, loss, costs).furthest([rise])
    best = most_saved(value, loss, rise, costs)
    assert best - 1e-9 <= point.flop_saving <= best + (1 - costs[0]) / tokens + 1e-9
    assert point.nll_rise <= np.log1p(rise) + 1e-9


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), tokens=st.integers(1, 200), exits=st.sampled_from([2, 3, 5]))
def test_nothing_attainable_exceeds_the_gain_oracle_at_the_same_rise(seed, tokens, exits):
    value, loss, costs = (
        divergences(seed, tokens, exits),
        losses(seed, tokens, exits),
        np.linspace(0.3, 1, exits),
    )
    for rise, point in zip(RISES.values(), Path.of(value, loss, costs).furthest(list(RISES.values()))):
        assert point.flop_saving <= largest_saving(loss, costs, rise).flop_saving + 1e-9
    at_random = random_savings(loss.mean(1), costs)
    for rise, saving in zip(RISES.values(), at_random):
        assert saving <= largest_saving(loss, costs, rise).flop_saving + 1e-9


@pytest.mark.parametrize("seed", range(5))
def test_with_two_exits_tokens_leave_in_the_order_of_their_divergence(seed):
    value, loss = divergences(seed, 400, 2), losses(seed, 400, 2)
    loss[0] = loss[1] + value[0] + np.random.default_rng(seed).normal(0, 0.5, 400)
    order = np.argsort(value[0])
    rises = np.append(0.0, np.cumsum((loss[0] - loss[1])[order])) / 400
    for limit in (0.01, 0.1):
        last = np.flatnonzero(rises <= np.log1p(limit))[-1]
        assert 0 < last < 400
        (point,) = Path.of(value, loss, np.array([0.4, 1.0])).furthest([limit])
        assert 0.6 * last / 400 <= point.flop_saving < 0.6 * (last + 1) / 400
        assert can_leave(value[0], loss[0], loss[1], limit) == pytest.approx(point.flop_saving / 0.6)


def test_tokens_that_are_alike_leave_in_no_order():
    value, loss = np.array([[0.5] * 4, [0.0] * 4]), np.array([[1.0, 5.0, 1.0, 5.0], [2.0] * 4])
    (point,) = Path.of(value, loss, np.array([0.4, 1.0])).furthest([np.expm1(0.25)])
    assert point.flop_saving == pytest.approx(0.6 / 4), "a nat per token in the mean, so a quarter may leave"
    assert random_savings(loss.mean(1), np.array([0.4, 1.0]))[0] == pytest.approx(0.6 * np.log(1.01))


def test_random_exits_mix_the_two_depths_that_are_best_mixed():
    """An exit in between that is worth nothing is not used: on the line from first to last it would be."""
    assert random_savings(np.array([3.5, 3.49, 3.0]), COSTS)[0] == pytest.approx(0.7 * np.log(1.01) / 0.5)
    assert random_savings(np.array([3.5, 3.05, 3.0]), COSTS)[0] == pytest.approx(0.35 * np.log(1.01) / 0.05)


def test_an_exit_that_costs_more_than_full_depth_is_not_taken():
    value, loss = divergences(0, 50), losses(0, 50)
    costs = np.array([0.5, 1.1, 1.0])
    with_it, without = (
        Path.of(value[rows], loss[rows], costs[rows]).furthest([0.05])[0] for rows in ([0, 1, 2], [0, 2])
    )
    assert with_it == without and with_it.flop_saving > 0


def test_intervals_are_over_groups_and_hold_the_value():
    value, loss = divergences(3, 2000, 2), losses(3, 2000, 2)
    loss[0] = loss[1] + value[0] + np.random.default_rng(3).normal(0, 0.3, 2000)
    costs = np.array([0.4, 1.0])

    def of_groups(size):
        return attainable(value, loss, costs, np.arange(2000) // size, 200).rise_3

    tokens, documents = of_groups(1), of_groups(500)
    for bound in (tokens, documents):
        assert bound.interval[0] < bound.flop_saving < bound.interval[1]
        assert bound.lead_interval[0] < bound.lead < bound.lead_interval[1]
        assert bound.ppl == pytest.approx(np.exp(loss[1].mean()) * 1.03)
    assert tokens.interval != documents.interval
    assert of_groups(2000).interval is None, "a single document says nothing of others"


def test_a_resample_is_the_path_of_its_tokens():
    value, loss, times = divergences(4, 60), losses(4, 60), np.random.default_rng(4).integers(0, 4, 60)
    repeated = [np.repeat(part, times, axis=1) for part in (value, loss)]
    weighted = Path.of(value, loss, COSTS).furthest([0.01, 0.3], times)
    for one, other in zip(weighted, Path.of(*repeated, COSTS).furthest([0.01, 0.3])):
        assert one == pytest.approx(other)


def test_a_limit_below_full_depth_is_met_where_exits_are_better_and_nowhere_else():
    loss = np.array([[1.0, 3.0, 2.5], [2.0, 2.0, 2.0]])
    path = Path.of(loss, loss, np.array([0.4, 1.0]))
    better, best, too_much = path.within([-0.1, -1 / 3, -0.4])
    # the third token takes 1/6 nats more on average, the second one 1/3: a fifth of it fits
    assert better == (pytest.approx(0.2 + 0.2 + 0.2 / 5), pytest.approx(-0.1))
    assert best == (pytest.approx(0.2), pytest.approx(-1 / 3))
    assert too_much is None
    assert path.within(np.log1p([0.01, 0.05])) == path.furthest([0.01, 0.05])
