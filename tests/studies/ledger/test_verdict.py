"""Verdicts follow from where an interval and a rerun lie, and from nothing else."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.errors import UserError
from studies.ledger.verdict import (
    ANSWERS,
    VERDICTS,
    Corrected,
    Judgement,
    Region,
    agree,
    answer,
    judge,
    level_band,
    share_band,
)

SCALE = "not reproduced at this scale"
CASES = [
    # region, rerun, interval, n, smaller, other quantity, verdict, why
    ((0.2, 0.3), 0.25, (0.22, 0.28), 3, False, False, "holds", "inside"),
    ((0.2, 0.3), 0.25, (0.2, 0.3), 3, False, False, "holds", "inside"),
    ((0.2, 0.3), 0.299, (0.22, 0.28), 3, False, False, "holds", "inside"),
    ((0.2, 0.3), 0.90, (0.22, 0.28), 3, False, False, "holds only corrected", "inside"),
    ((0.2, 0.3), 0.90, (0.22, 0.28), 3, True, False, "holds only corrected", "inside"),
    ((0.2, 0.3), 0.301, (0.22, 0.28), 3, False, False, "inconclusive", "near"),
    ((0.2, 0.3), 0.25, (0.0, 0.1), 3, False, False, "artefact", "apart"),
    ((0.2, 0.3), 0.25, (0.0, 0.1), 3, True, False, "artefact", "apart"),
    ((0.2, 0.3), 0.25, (0.0, 0.1), 3, False, True, "artefact", "apart"),
    ((0.2, 0.3), 0.209, (0.0, 0.1), 3, False, False, "inconclusive", "near"),
    ((0.2, 0.3), 0.211, (0.0, 0.1), 3, False, False, "artefact", "apart"),
    ((0.2, 0.3), 0.35, (0.0, 0.1), 3, False, False, "fails", "apart"),
    ((0.2, 0.3), 0.35, (0.0, 0.1), 3, False, True, "fails", "apart"),
    ((0.2, 0.3), 0.314, (0.0, 0.1), 3, False, False, "inconclusive", "near"),
    ((0.2, 0.3), 0.316, (0.0, 0.1), 3, False, False, "fails", "apart"),
    ((0.2, 0.3), 0.35, (0.0, 0.1), 3, True, False, SCALE, "apart"),
    ((0.2, 0.3), 0.314, (0.0, 0.1), 3, True, False, "inconclusive", "near"),
    ((0.2, 0.3), 0.316, (0.0, 0.1), 3, True, False, SCALE, "apart"),
    ((0.2, 0.3), 0.35, (0.1, 0.25), 3, True, False, SCALE, "edge"),
    ((0.2, 0.3), 0.35, (0.1, 0.25), 2, True, False, "inconclusive", "few"),
    ((0.2, 0.3), 0.35, (0.0, 0.1), 3, True, True, "inconclusive", "other quantity"),
    ((0.2, 0.3), 0.25, (0.22, 0.28), 3, False, True, "inconclusive", "other quantity"),
    ((0.2, 0.3), 0.90, (0.22, 0.28), 3, False, True, "inconclusive", "other quantity"),
    ((0.2, 0.3), 0.25, (0.1, 0.2), 3, False, False, "inconclusive", "edge"),
    ((0.2, 0.3), 0.25, (0.1, 0.2), 3, True, False, "inconclusive", "edge"),
    ((0.2, 0.3), 0.35, (0.1, 0.9), 3, False, False, "inconclusive", "edge"),
    ((0.2, 0.3), 0.25, (0.22, 0.28), 2, False, False, "inconclusive", "few"),
    ((None, 0.95), 0.8, (0.5, 0.6), 5, False, False, "holds", "inside"),
    ((None, 0.95), 0.8, (1.0, 1.1), 5, False, False, "artefact", "apart"),
    ((None, -0.02), -0.0195, (0.1, 0.2), 5, False, False, "inconclusive", "near"),
    ((1.05, None), 0.9, (1.0, 1.04), 5, False, False, "fails", "apart"),
    ((1.05, None), 2.0, (2.0, 2.0), 5, False, False, "holds", "inside"),
    ((0.0, None), 0.0, (-0.2, -0.1), 5, False, False, "inconclusive", "near"),
    ((0.0, None), 0.001, (-0.2, -0.1), 5, False, False, "artefact", "apart"),
]


@pytest.mark.parametrize(("region", "rerun", "interval", "n", "smaller", "other", "verdict", "why"), CASES)
def test_the_rule_case_by_case(region, rerun, interval, n, smaller, other, verdict, why):
    judged = judge(
        Region(*region), rerun, Corrected(0.0, *interval, n), smaller=smaller, other_quantity=other
    )
    assert judged == Judgement(verdict, why)


def test_the_cases_have_every_verdict_that_intervals_decide():
    assert {case[6] for case in CASES} == set(VERDICTS) - {"not comparable"}


reals = st.one_of(st.integers(-(10**6), 10**6), st.integers(-64, 64)).map(lambda whole: whole / 64)
"""Numbers whose multiples by powers of two are exact, many of them equal."""
pairs = st.tuples(reals, reals).map(sorted)
regions = st.one_of(
    pairs.map(lambda pair: Region(*pair)),
    reals.map(lambda low: Region(low, None)),
    reals.map(lambda high: Region(None, high)),
)
flags = st.booleans()


def by_the_table(region: Region, rerun: float, low: float, high: float, n: int, smaller: bool, other: bool):
    """The verdict as the design's table words it, by the points that region and interval share."""
    edges = [edge for edge in (region.low, region.high) if edge is not None]
    shared = any(region.contains(point) and low <= point <= high for point in [low, high, *edges])
    inside, reproduced = region.contains(low) and region.contains(high), region.contains(rerun)
    near = any(edge - 0.05 * abs(edge) <= rerun <= edge + 0.05 * abs(edge) for edge in edges)
    if n < 3:
        return "inconclusive"
    if inside and reproduced:
        return "inconclusive" if other else "holds"
    if inside:
        return "inconclusive" if other or near else "holds only corrected"
    if not reproduced and smaller:
        return "inconclusive" if other or near else SCALE
    if shared or near:
        return "inconclusive"
    return "artefact" if reproduced else "fails"


@given(regions, reals, pairs, st.integers(0, 9), flags, flags)
def test_the_verdict_is_that_of_the_table(region, rerun, interval, n, smaller, other):
    judged = judge(region, rerun, Corrected(0.0, *interval, n), smaller=smaller, other_quantity=other)
    expected = by_the_table(region, rerun, *interval, n, smaller, other)
    edges = (edge for edge in (region.low, region.high) if edge is not None)
    on_the_brink = any(math.isclose(abs(rerun - edge), 0.05 * abs(edge), rel_tol=1e-9) for edge in edges)
    assert judged.outcome == expected or on_the_brink


@given(regions, reals, pairs, reals, st.integers(-1000, 1000), flags, flags)
def test_only_geometry_counts(region, rerun, interval, mean, shift, smaller, other):
    """The corrected mean is not looked at, and turning the axis round changes nothing."""
    options = {"smaller": smaller, "other_quantity": other}
    before = judge(region, rerun, Corrected(mean, *interval, 3), **options)

    def turned(value):
        return None if value is None else -value

    mirror = Region(turned(region.high), turned(region.low))
    assert judge(mirror, -rerun, Corrected(shift, -interval[1], -interval[0], 3), **options) == before


@given(regions, reals, pairs, st.integers(-8, 8), flags)
def test_the_unit_does_not_count(region, rerun, interval, power, smaller):
    """Near an edge is a share of the edge: another unit, by a power of two, changes nothing."""
    factor = 2.0**power
    scaled = Region(*(None if edge is None else factor * edge for edge in (region.low, region.high)))
    one = judge(region, rerun, Corrected(0.0, *interval, 3), smaller=smaller)
    low, high = (factor * bound for bound in interval)
    assert judge(scaled, factor * rerun, Corrected(0.0, low, high, 3), smaller=smaller) == one


@given(regions, reals, pairs, st.integers(0, 9))
def test_flags_only_soften(region, rerun, interval, n):
    """A smaller rerun never fails; another quantity keeps failures and artefacts, and nothing else."""
    figure = Corrected(0.0, *interval, n)
    plain = judge(region, rerun, figure).outcome
    assert judge(region, rerun, figure, smaller=True).outcome in (plain, SCALE)
    assert judge(region, rerun, figure, smaller=True).outcome != "fails"
    expected = plain if plain in ("fails", "artefact") else "inconclusive"
    assert judge(region, rerun, figure, other_quantity=True).outcome == expected


@given(regions, reals, pairs, st.integers(0, 9))
def test_questions_are_answered_by_the_interval_alone(region, rerun, interval, n):
    figure = Corrected(0.0, *interval, n)
    verdict, answered = judge(region, rerun, figure).outcome, answer(region, figure).outcome
    assert answered in ANSWERS
    if verdict in ("holds", "holds only corrected"):
        assert answered == "yes"
    if verdict in ("fails", "artefact"):
        assert answered == "no"
    if n < 3:
        assert answered == "no answer yet"


@pytest.mark.parametrize(
    ("interval", "outcome"), [((0.5, 0.6), "yes"), ((0.1, 0.2), "no"), ((0.3, 0.5), "no answer yet")]
)
def test_answers(interval, outcome):
    assert answer(Region(0.4, 0.6), Corrected(0.0, *interval, 3)).outcome == outcome


def test_corpora_must_agree():
    holds, fails = Judgement("holds", "inside"), Judgement("fails", "apart")
    edge = Judgement("inconclusive", "edge")
    assert agree({"a": holds, "b": holds}, "inconclusive") == holds
    assert agree({"a": fails}, "inconclusive") == fails
    assert agree({"a": holds, "b": fails}, "inconclusive") == Judgement("inconclusive", "disagree")
    assert agree({"a": holds, "b": edge}, "inconclusive") == Judgement("inconclusive", "disagree")
    assert agree({"a": edge, "b": Judgement("inconclusive", "few")}, "inconclusive") == edge
    yes, no = Judgement("yes", "inside"), Judgement("no", "apart")
    assert agree({"a": yes, "b": no}, "no answer yet") == Judgement("no answer yet", "disagree")


def test_bands_around_published_figures():
    assert level_band(8.0) == Region(6.0, 10.0)
    assert level_band(-8.0) == Region(-10.0, -6.0)
    assert share_band(0.5) == Region(0.45, 0.55)
    assert share_band(1.0) == Region(0.95, None)
    assert share_band(-0.98) == Region(None, -0.98 + 0.05)


@pytest.mark.parametrize("bounds", [(None, None), (2.0, 1.0), (float("nan"), 1.0), (float("inf"), None)])
def test_an_impossible_region_is_refused(bounds):
    with pytest.raises(UserError, match="region"):
        Region(*bounds)


@pytest.mark.parametrize("interval", [(2.0, 1.0), (float("nan"), 1.0)])
def test_an_impossible_interval_is_refused(interval):
    with pytest.raises(UserError, match="interval"):
        judge(Region(0.0, 1.0), 0.5, Corrected(0.0, *interval, 3))
