"""A benchmark's value says how sure it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.measure import Median, Row, median_ratio


@given(
    st.lists(st.integers(10, 1000).map(lambda percent: percent / 100), min_size=5, max_size=30, unique=True)
)
def test_the_interval_holds_the_median_and_lies_within_what_was_measured(values):
    median = Median.of(values)
    low, high = median.interval
    assert min(values) <= low <= median <= high <= max(values)


def test_few_measurements_have_no_interval():
    assert median_ratio([2.0, 3.0, 5.0, 7.0], [1.0] * 4).interval is None
    with pytest.raises(ValueError):
        median_ratio([2.0, 3.0], [1.0])


def test_a_record_tells_value_interval_and_whether_the_bar_is_met():
    record = Row(
        "name", median_ratio([1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 5), "x speed", ">= 2", "another", 5
    ).record()
    assert (record.value, record.interval, record.met) == (3.0, [1.0, 5.0], True)
    assert Row("name", 1.5, "s", "<= 1", "nothing", 1).record().interval is None
