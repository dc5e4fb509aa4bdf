"""A benchmark's value says how sure it is, and its row what that says of the bar."""

from __future__ import annotations

import subprocess

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import measure
from benchmarks.measure import FEWEST, Estimate, Median, Row, in_rounds, in_turn, median_ratio


@given(
    st.lists(st.integers(10, 1000).map(lambda percent: percent / 100), min_size=5, max_size=30, unique=True)
)
def test_the_interval_holds_the_median_and_lies_within_what_was_measured(values):
    median = Median.of(values)
    low, high = median.interval
    assert min(values) <= low <= median <= high <= max(values)
    assert median.n == len(values)


def test_few_measurements_have_no_interval():
    assert median_ratio([2.0, 3.0, 5.0, 7.0], [1.0] * 4).interval is None
    with pytest.raises(ValueError):
        median_ratio([2.0, 3.0], [1.0])


def test_measurements_that_are_all_alike_are_as_sure_as_can_be():
    assert Median.of([3.0] * FEWEST).interval == [3.0, 3.0]


def test_a_value_in_another_unit_takes_its_interval_along():
    share = Estimate.within(0.25, [0.2, 0.3], 7)
    percent = share.scaled(100)
    assert (percent, percent.interval, percent.n) == (25, pytest.approx([20, 30]), 7)
    assert Estimate.within(0.25, None, 1).scaled(100).interval is None


def test_a_record_tells_value_interval_and_whether_the_bar_is_met():
    ratio = median_ratio([1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 5)
    record = Row("name", ratio, "x speed", ">= 1", "another").record()
    assert (record.value, record.interval, record.verdict, record.n) == (3.0, [1.0, 5.0], "met", 5)
    assert Row("name", ratio, "x speed", ">= 2", "another").record().verdict == "not established"
    once = Row("name", 0.5, "s", "<= 1", "nothing").record()
    assert (once.interval, once.verdict, once.n) == (None, "not established", 1)


def test_a_record_names_its_commit_and_marks_code_that_was_changed(tmp_path, monkeypatch):
    def git(*words):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], cwd=tmp_path, check=True)

    def commit():
        measure.commit.cache_clear()
        return measure.commit()

    monkeypatch.setattr(measure, "ROOT", tmp_path)
    try:
        assert commit() is None
        for folder in ("src", "metrics"):
            (tmp_path / folder).mkdir()
            (tmp_path / folder / "file").write_text("before")
        git("init", "-q")
        git("add", "-A")
        git("commit", "-qm", "first")
        clean = commit()
        assert len(clean) == 7
        (tmp_path / "metrics/file").write_text("a result")
        assert commit() == clean
        (tmp_path / "src/file").write_text("after")
        assert commit() == clean + "+"
    finally:
        measure.commit.cache_clear()


@pytest.mark.parametrize(("quick", "runs"), [(False, 9), (True, FEWEST)])
def test_a_quick_look_repeats_less_and_says_how_often(monkeypatch, quick, runs):
    monkeypatch.setattr(measure, "QUICK", quick)
    done = []
    first, second = in_turn(lambda: done.append("a"), lambda: done.append("b"), 9)
    assert len(first) == len(second) == median_ratio(first, second).n == runs
    assert done.count("a") == runs + 1  # and one that is not measured
    assert len(in_rounds([lambda: None], 3)[0]) == 3


def test_work_changes_who_begins():
    order = []
    in_rounds([lambda: order.append("a"), lambda: order.append("b")], 2)
    assert order == ["b", "a", "a", "b"]


def test_an_interval_of_draws_is_their_middle():
    drawn = Estimate.drawn(50.0, np.arange(101.0), 4)
    assert (drawn, drawn.interval, drawn.n) == (50.0, pytest.approx([2.5, 97.5]), 4)
