"""Verdicts follow from where an interval lies, and from nothing else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.errors import UserError
from studies.ledger.verdict import (
    VERDICTS,
    Corrected,
    Judgement,
    Region,
    agree,
    judge,
    level_band,
    share_band,
)

CASES = [
    # region, rerun, interval, n, verdict, why
    ((0.2, 0.3), 0.25, (0.22, 0.28), 3, "holds", "inside"),
    ((0.2, 0.3), 0.90, (0.22, 0.28), 3, "holds", "inside"),
    ((0.2, 0.3), 0.25, (0.2, 0.3), 3, "holds", "inside"),
    ((0.2, 0.3), 0.25, (0.0, 0.1), 3, "artefact", "apart"),
    ((0.2, 0.3), 0.35, (0.0, 0.1), 3, "fails", "apart"),
    ((0.2, 0.3), None, (0.0, 0.1), 3, "fails", "apart"),
    ((0.2, 0.3), 0.25, (0.1, 0.2), 3, "inconclusive", "edge"),
    ((0.2, 0.3), 0.25, (0.1, 0.9), 3, "inconclusive", "edge"),
    ((0.2, 0.3), 0.25, (0.22, 0.28), 2, "inconclusive", "few"),
    ((0.2, 0.3), 0.25, (None, None), 3, "inconclusive", "no interval"),
    ((None, 0.95), 0.9, (0.5, 0.6), 5, "holds", "inside"),
    ((None, 0.95), 0.9, (1.0, 1.1), 5, "artefact", "apart"),
    ((1.05, None), 0.9, (1.0, 1.04), 5, "fails", "apart"),
    ((1.05, None), 0.9, (2.0, 2.0), 5, "holds", "inside"),
]


@pytest.mark.parametrize(("region", "rerun", "interval", "n", "verdict", "why"), CASES)
def test_the_rule_case_by_case(region, rerun, interval, n, verdict, why):
    assert judge(Region(*region), rerun, Corrected(0.0, *interval, n)) == Judgement(verdict, why)


reals = st.floats(-1e6, 1e6)
pairs = st.tuples(reals, reals).map(sorted)
regions = st.one_of(
    pairs.map(lambda pair: Region(*pair)),
    reals.map(lambda low: Region(low, None)),
    reals.map(lambda high: Region(None, high)),
)


@given(regions, reals, pairs, st.integers(0, 9))
def test_the_four_verdicts_are_exhaustive_and_each_means_what_it_says(region, rerun, interval, n):
    found = judge(region, rerun, Corrected(0.0, *interval, n)).verdict
    points = [*interval, *(bound for bound in (region.low, region.high) if bound is not None)]
    shared = any(region.contains(point) and interval[0] <= point <= interval[1] for point in points)
    inside = all(region.contains(point) for point in interval)
    assert found in VERDICTS
    assert (found == "holds") == (n >= 3 and inside)
    assert (found in ("fails", "artefact")) == (n >= 3 and not shared)
    if found in ("fails", "artefact"):
        assert (found == "artefact") == region.contains(rerun)


@given(regions, reals, pairs, reals, st.integers(-1000, 1000))
def test_only_geometry_counts(region, rerun, interval, mean, shift):
    """The corrected mean is not looked at, and turning the axis round changes nothing."""
    before = judge(region, rerun, Corrected(mean, *interval, 3))

    def turned(value):
        return None if value is None else -value

    mirror = Region(turned(region.high), turned(region.low))
    assert judge(mirror, -rerun, Corrected(shift, -interval[1], -interval[0], 3)) == before


def test_corpora_must_agree():
    holds, fails = Judgement("holds", "inside"), Judgement("fails", "apart")
    edge = Judgement("inconclusive", "edge")
    assert agree({"a": holds, "b": holds}) == holds
    assert agree({"a": fails}) == fails
    assert agree({"a": holds, "b": fails}) == Judgement("inconclusive", "disagree")
    assert agree({"a": holds, "b": edge}) == Judgement("inconclusive", "disagree")
    assert agree({"a": edge, "b": Judgement("inconclusive", "few")}) == edge


def test_bands_around_published_figures():
    assert level_band(8.0) == Region(6.0, 10.0)
    assert level_band(-8.0) == Region(-10.0, -6.0)
    assert share_band(0.5) == Region(0.45, 0.55)


@pytest.mark.parametrize("bounds", [(None, None), (2.0, 1.0), (float("nan"), 1.0), (float("inf"), None)])
def test_an_impossible_region_is_refused(bounds):
    with pytest.raises(UserError, match="region"):
        Region(*bounds)


@pytest.mark.parametrize("interval", [(2.0, 1.0), (float("nan"), 1.0)])
def test_an_impossible_interval_is_refused(interval):
    with pytest.raises(UserError, match="interval"):
        judge(Region(0.0, 1.0), None, Corrected(0.0, *interval, 3))
