"""Oracle bounds against a linear programme and against every choice of exits there is."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from offramp.analysis.oracle import largest_saving, least_loss, same_prediction, settled_at

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
    found = linprog(
        np.repeat(COSTS, tokens) / tokens,
        A_ub=loss.reshape(1, -1) / tokens,
        b_ub=[limit],
        A_eq=one_exit_each,
        b_eq=np.ones(tokens),
        bounds=(0, 1),
    )
    bound = largest_saving(loss, COSTS, rise)
    assert bound.flop_saving == pytest.approx(1 - found.fun, abs=1e-6)
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
