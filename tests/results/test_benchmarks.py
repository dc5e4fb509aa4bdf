"""One rule says of value, interval and bar whether a benchmark met it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from offramp.results.benchmarks import Benchmark, verdict

NUMBERS = st.floats(-100, 100)
RELATIONS = st.sampled_from(["<=", ">="])


@st.composite
def measured(draw):
    """A value within its interval."""
    low, value, high = sorted(draw(st.tuples(NUMBERS, NUMBERS, NUMBERS)))
    return value, [low, high]


@given(measured(), RELATIONS, NUMBERS)
def test_a_bar_within_the_interval_leaves_it_open_and_one_outside_decides_it(estimate, relation, bound):
    value, (low, high) = estimate
    said = verdict(value, [low, high], f"{relation} {bound!r}")
    if low < bound < high:
        assert said == "not established"
    elif bound < low:
        assert said == ("met" if relation == ">=" else "missed")
    elif bound > high:
        assert said == ("met" if relation == "<=" else "missed")


@given(measured(), NUMBERS)
def test_the_two_relations_are_mirror_images(estimate, bound):
    value, (low, high) = estimate
    least = verdict(value, [low, high], f">= {bound!r}")
    assert least == verdict(-value, [-high, -low], f"<= {-bound!r}")


@given(measured(), RELATIONS, NUMBERS, st.floats(0, 50))
def test_a_wider_interval_never_decides_more(estimate, relation, bound, more):
    value, (low, high) = estimate
    narrow = verdict(value, [low, high], f"{relation} {bound!r}")
    wide = verdict(value, [low - more, high + more], f"{relation} {bound!r}")
    assert wide in (narrow, "not established")


@given(NUMBERS, RELATIONS, NUMBERS)
def test_without_an_interval_nothing_is_established_and_without_a_bar_nothing_is_said(value, relation, bound):
    assert verdict(value, None, f"{relation} {bound!r}") == "not established"
    assert verdict(value, None, None) is verdict(value, [value, value], None) is None


def test_a_bar_that_is_reached_exactly_is_met():
    assert verdict(2.0, [2.0, 3.0], ">= 2") == "met"
    assert verdict(2.0, [1.0, 2.0], "<= 2") == "met"


def test_a_value_outside_its_interval_decides_nothing_by_itself():
    assert verdict(0.9, [1.1, 1.2], ">= 1") == "not established"


@pytest.mark.parametrize("bar", ["2", "> 2", "<=2", "at least 2"])
def test_a_bar_of_another_form_is_an_error(bar):
    with pytest.raises(ValueError, match="bar"):
        verdict(1.0, [0.0, 2.0], bar)


def test_a_record_with_another_verdict_than_the_rule_is_refused():
    fields = {
        **{"name": "speed", "value": 1.3, "unit": "x", "bar": ">= 1.2", "held_against": "another", "n": 6},
        **{"interval": [1.1, 1.4], "machine": "none", "commit": "abc1234", "date": "2026-11-30"},
    }
    assert Benchmark(**fields, verdict="not established").verdict == "not established"
    with pytest.raises(ValidationError, match="speed: the verdict is met, by the rule it is not established"):
        Benchmark(**fields, verdict="met")
