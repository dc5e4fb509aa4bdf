"""Seconds of routing beside those of full depth."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.results.routing import Origin
from offramp.routing.timing import median_interval, time_routing

ORIGIN = Origin(
    date="2026-05-04 12:30 UTC",
    commit=None,
    changed=False,
    dvc_experiment=None,
    mlflow_experiment="offramp",
    mlflow_run="threshold=0.8 (no commit)",
)


def test_every_arm_is_timed_on_the_same_batches(split):
    timing = time_routing(
        split.executor, split.windows, split.policy, split.routed.exit, split.settings, ORIGIN
    )
    low, high = timing.wall_saving_interval
    assert low <= timing.wall_saving <= high < 1
    assert timing.origin == ORIGIN
    assert timing.pairs == 4
    tokens = timing.pairs * split.settings.batch_size * split.windows.window
    assert timing.full_seconds * timing.full_tokens_per_second == pytest.approx(tokens)
    assert timing.routed_seconds * timing.routed_tokens_per_second == pytest.approx(tokens)
    assert timing.skipping_saving < 1


@pytest.mark.parametrize(
    ("count", "ranks"), [(1, (0, 0)), (5, (0, 4)), (6, (0, 5)), (9, (1, 7)), (20, (5, 14)), (30, (9, 20))]
)
def test_the_interval_of_the_median_takes_the_ranks_of_the_sign_test(count, ranks):
    """Ranks of tables of the sign test at 95 %, counted from 0."""
    values = list(range(count))
    random.Random(count).shuffle(values)
    assert median_interval(values) == list(ranks)


@given(st.lists(st.floats(-1, 1), min_size=6, max_size=40))
def test_the_interval_of_the_median_misses_it_at_most_one_time_in_twenty(values):
    """And the next narrower pair of ranks would miss it more often."""
    low, high = median_interval(values)
    assert min(values) <= low <= high <= max(values)
    count, distinct = len(values), list(range(len(values)))
    rank = int(median_interval(distinct)[0]) + 1

    def missed(rank: int) -> float:
        return 2 * sum(math.comb(count, below) for below in range(rank)) / 2**count

    assert missed(rank) <= 0.05 < missed(rank + 1)
