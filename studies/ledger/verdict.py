"""Verdicts on what reports say and answers to questions of ours, by a rule that knows geometry only.

A statement names its *region*: the values of the corrected quantity for which it would be true. The verdict
on a claim follows from where the corrected interval lies and whether the rerun, the figure under the
published protocol, lies in the region, too:

    a level of another text, vocabulary or machine          not comparable
    inside the region, the rerun inside                     holds
    inside, the rerun outside                               holds only corrected
    apart from it, the rerun inside                         artefact: it owes itself to the flaw
    apart from it, the rerun outside                        fails
    not inside, the rerun outside and of a smaller
    experiment than the report's                            not reproduced at this scale
    everything else                                         inconclusive

Everything else is: an interval across an edge, fewer than 3 random seeds or none, corpora that disagree, a
rerun so near an edge that one run cannot tell on which side it is where that decides, and a corrected
figure that is another quantity than the report's unless that fails or is an artefact. A question is answered
by the corrected interval alone: yes inside its region, no apart from it. Regions and intervals are closed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar, get_args

from offramp.errors import UserError

Verdict = Literal[
    "holds",
    "holds only corrected",
    "artefact",
    "fails",
    "not reproduced at this scale",
    "inconclusive",
    "not comparable",
]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
Answer = Literal["yes", "no", "no answer yet"]
ANSWERS: tuple[Answer, ...] = get_args(Answer)

Place = Literal["inside", "apart", "edge", "few"]
"""Where the corrected interval lies, or why it decides nothing."""

Why = Place | Literal["near", "other quantity", "level", "disagree"]
"""What decided."""

Outcome = TypeVar("Outcome", Verdict, Answer)

FEWEST = 3
"""Random seeds below which an interval decides nothing."""

LEVEL, SHARE = 0.25, 0.05
"""Half-widths of the bands around a published figure: relative for levels, absolute for correlations and
shares.
"""

NEAR = 0.05
"""Distance from an edge, as a share of the edge, within which one rerun decides nothing."""


@dataclass(frozen=True)
class Region:
    """low <= quantity <= high; None is unbounded. Raises UserError if it is empty or the whole line."""

    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        if not self.edges or not all(math.isfinite(edge) for edge in self.edges):
            raise UserError(f"region: [{self.low}, {self.high}] needs at least one bound, and finite ones")
        if self.edges != sorted(self.edges):
            raise UserError(f"region: low {self.low} is above high {self.high}; swap them")

    @property
    def edges(self) -> list[float]:
        """Its bounds, without open ends."""
        return [bound for bound in (self.low, self.high) if bound is not None]

    def contains(self, value: float) -> bool:
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    def apart_from(self, low: float, high: float) -> bool:
        """Whether [low, high] has no point in common with the region."""
        return (self.low is not None and high < self.low) or (self.high is not None and low > self.high)

    def has_edge_near(self, value: float) -> bool:
        """Whether the value lies within ``NEAR`` of an edge."""
        return any(abs(value - edge) <= NEAR * abs(edge) for edge in self.edges)


def level_band(published: float) -> Region:
    """The published figure within a quarter of it: for quantities with a unit, which depend on text and
    vocabulary.
    """
    return Region(*sorted((published * (1 - LEVEL), published * (1 + LEVEL))))


def share_band(published: float) -> Region:
    """The published figure within 0.05: for correlations, shares and accuracies.

    A bound that no such figure can pass is no edge.
    """
    low, high = published - SHARE, published + SHARE
    return Region(low if low > -1 else None, high if high < 1 else None)


@dataclass(frozen=True)
class Corrected:
    """A figure under the corrected protocol, its interval, and the number of random seeds."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Judgement(Generic[Outcome]):
    """A verdict or an answer, and what decided."""

    outcome: Outcome
    why: Why


def place(region: Region, corrected: Corrected) -> Place:
    """Where the corrected interval lies. Raises UserError for one that is upside down or not finite."""
    low, high = corrected.low, corrected.high
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise UserError(f"interval: [{low}, {high}] is not an interval; run the study again")
    if corrected.n < FEWEST:
        return "few"
    if region.contains(low) and region.contains(high):
        return "inside"
    return "apart" if region.apart_from(low, high) else "edge"


def judge(
    region: Region, rerun: float, corrected: Corrected, *, smaller: bool = False, other_quantity: bool = False
) -> Judgement[Verdict]:
    """The verdict on one corpus.

    ``rerun`` is the figure under the published protocol; ``smaller``: it is of a smaller experiment than the
    report's; ``other_quantity``: the corrected figure is not the report's own. Raises UserError for an
    interval that is none.
    """
    lies, reproduced = place(region, corrected), region.contains(rerun)
    if lies == "few":
        return Judgement("inconclusive", lies)
    if lies != "inside" and not reproduced and smaller:
        verdict: Verdict = "not reproduced at this scale"
    elif lies == "edge":
        return Judgement("inconclusive", "edge")
    elif lies == "inside":
        verdict = "holds" if reproduced else "holds only corrected"
    else:
        verdict = "artefact" if reproduced else "fails"
    if other_quantity and verdict not in ("artefact", "fails"):
        return Judgement("inconclusive", "other quantity")
    if verdict != "holds" and region.has_edge_near(rerun):
        return Judgement("inconclusive", "near")
    return Judgement(verdict, lies)


def answer(region: Region, corrected: Corrected) -> Judgement[Answer]:
    """The answer on one corpus. Raises UserError for an interval that is none."""
    lies = place(region, corrected)
    known: dict[Place, Answer] = {"inside": "yes", "apart": "no"}
    return Judgement(known.get(lies, "no answer yet"), lies)


def agree(judgements: Mapping[str, Judgement[Outcome]], undecided: Outcome) -> Judgement[Outcome]:
    """One judgement for all corpora: theirs if they have one outcome, else ``undecided``.

    Needs at least one.
    """
    first = next(iter(judgements.values()))
    if all(judgement.outcome == first.outcome for judgement in judgements.values()):
        return first
    return Judgement(undecided, "disagree")
