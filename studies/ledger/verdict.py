"""Verdicts on published claims, by a rule that knows geometry only.

A claim names beforehand its *region*: the values of the corrected quantity for which it would be true. The
verdict then follows from where the corrected interval lies:

    inside the region                       holds
    apart from it, the rerun inside         artefact       the figure reproduces, but only through the flaw
    apart from it, the rerun outside        fails
    across its edge, no interval, n < 3     inconclusive
    not the same on every corpus            inconclusive

Regions and intervals are closed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from offramp.errors import UserError

Verdict = Literal["holds", "fails", "artefact", "inconclusive"]
VERDICTS: tuple[Verdict, ...] = ("holds", "fails", "artefact", "inconclusive")

Why = Literal["inside", "apart", "edge", "few", "no interval", "disagree"]
"""What decided: where the corrected interval lies, or why it decides nothing."""

FEWEST = 3
"""Seeds or resamples below which an interval decides nothing."""

LEVEL, SHARE = 0.25, 0.05
"""Half-widths of the bands around a published figure: relative for levels, absolute for correlations and
shares.
"""


@dataclass(frozen=True)
class Region:
    """low <= quantity <= high; None is unbounded. Raises UserError if it is empty or the whole line."""

    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        bounds = [bound for bound in (self.low, self.high) if bound is not None]
        if not bounds or not all(math.isfinite(bound) for bound in bounds):
            raise UserError(f"region: [{self.low}, {self.high}] needs at least one bound, and finite ones")
        if bounds != sorted(bounds):
            raise UserError(f"region: low {self.low} is above high {self.high}; swap them")

    def contains(self, value: float) -> bool:
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    def apart_from(self, low: float, high: float) -> bool:
        """Whether [low, high] has no point in common with the region."""
        return (self.low is not None and high < self.low) or (self.high is not None and low > self.high)


def level_band(published: float) -> Region:
    """The published figure within a quarter of it: for quantities with a unit, which depend on text and
    vocabulary.
    """
    return Region(*sorted((published * (1 - LEVEL), published * (1 + LEVEL))))


def share_band(published: float) -> Region:
    """The published figure within 0.05: for correlations, shares and accuracies."""
    return Region(published - SHARE, published + SHARE)


@dataclass(frozen=True)
class Corrected:
    """A figure under the corrected protocol, its interval (None where it has none), and the number of
    seeds.
    """

    value: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Judgement:
    verdict: Verdict
    why: Why


def judge(region: Region, rerun: float | None, corrected: Corrected) -> Judgement:
    """The verdict on one corpus; ``rerun`` is the figure under the published protocol, None where it has
    none.

    Raises UserError for an interval that is upside down or not finite.
    """
    low, high = corrected.low, corrected.high
    if low is None or high is None:
        return Judgement("inconclusive", "no interval")
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise UserError(f"interval: [{low}, {high}] is not an interval; run the study again")
    if corrected.n < FEWEST:
        return Judgement("inconclusive", "few")
    if region.contains(low) and region.contains(high):
        return Judgement("holds", "inside")
    if not region.apart_from(low, high):
        return Judgement("inconclusive", "edge")
    reproduced = rerun is not None and region.contains(rerun)
    return Judgement("artefact" if reproduced else "fails", "apart")


def agree(judgements: Mapping[str, Judgement]) -> Judgement:
    """One judgement for all corpora: theirs if they have one verdict, else inconclusive. Needs at least
    one.
    """
    first = next(iter(judgements.values()))
    if all(judgement.verdict == first.verdict for judgement in judgements.values()):
        return first
    return Judgement("inconclusive", "disagree")
