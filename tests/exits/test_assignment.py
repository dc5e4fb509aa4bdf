"""Exits of least total value at given counts, against an independent solver."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment

from offramp.exits.assignment import exits_of_least


def total(values: np.ndarray, exits: np.ndarray) -> float:
    return float(np.take_along_axis(values, exits[None], axis=0).sum())


def least_total(values: np.ndarray, counts: list[int]) -> float:
    """By the Hungarian method, with a seat for every token of every exit."""
    seats = np.repeat(np.arange(len(values)), [*counts, values.shape[1] - sum(counts)])
    rows, columns = linear_sum_assignment(values[seats])
    return float(values[seats][rows, columns].sum())


@st.composite
def problems(draw):
    exits, tokens = draw(st.integers(2, 5)), draw(st.integers(1, 30))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    values = rng.normal(size=(exits, tokens))
    if draw(st.booleans()):
        values = values.round(0)  # many ties
    cuts = np.sort(rng.integers(0, tokens + 1, exits - 1))
    return values, np.diff([0, *cuts]).tolist()


@given(problems())
@settings(max_examples=150, deadline=None)
def test_no_other_exits_with_these_counts_have_a_smaller_sum(problem):
    values, counts = problem
    exits = exits_of_least(values, counts)
    assert np.bincount(exits, minlength=len(values))[:-1].tolist() == counts
    assert total(values, exits) == pytest.approx(least_total(values, counts), abs=1e-9)


def test_with_two_exits_tokens_leave_in_the_order_of_what_leaving_adds():
    rng = np.random.default_rng(0)
    values = rng.exponential(size=(2, 1000))
    leave = np.flatnonzero(exits_of_least(values, [300]) == 0)
    assert set(leave) == set(np.argsort(values[0] - values[1])[:300])


def test_who_may_not_leave_stays_and_takes_no_place():
    values = np.zeros((3, 10))
    free = np.arange(10) >= 4
    exits = exits_of_least(values, [2, 3], free)
    assert (exits[~free] == 2).all()
    assert np.bincount(exits[free], minlength=3).tolist() == [2, 3, 1]
    with pytest.raises(ValueError, match="do not fit 6 tokens"):
        exits_of_least(values, [4, 3], free)


def test_the_counts_come_out_for_many_tokens_and_exits_too():
    rng = np.random.default_rng(1)
    values = rng.exponential(size=(4, 40_000)) * np.array([[3], [2], [1], [0]])
    exits = exits_of_least(values, [10_000, 10_000, 10_000])
    assert np.bincount(exits).tolist() == [10_000] * 4
