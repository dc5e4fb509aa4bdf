"""The studies as one HTML page, complete in itself: every plot, and every claim with its figures and its verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from offramp.report.figures import Figure
from offramp.report.html import inline, page_of
from offramp.report.theme import palette

TEMPLATE = Path(__file__).with_name("studies.html")


@dataclass(frozen=True)
class Claim:
    """A row of the ledger, as text."""

    id: str
    statement: str
    published: str
    rerun: str
    corrected: str
    """With its interval."""
    verdict: str
    reason: str


@dataclass(frozen=True)
class Study:
    name: str
    asks: str
    sentences: list[str]
    figures: list[Figure]
    """One per corpus; their names are unique on the page."""
    claims: list[Claim]


@dataclass(frozen=True)
class Part:
    """Studies that belong together: those of one seed, or those of a question of their own."""

    title: str
    counts: str
    """How many claims hold, fail and so on; empty where there are none."""
    studies: list[Study]


def studies_page(parts: Sequence[Part]) -> str:
    """The page as HTML; same parts, same text."""
    from markupsafe import Markup

    colours = palette(0)
    drawn = {
        figure.name: Markup(inline(figure, colours))
        for part in parts
        for study in part.studies
        for figure in study.figures
    }
    return page_of(TEMPLATE, [], colours, parts=parts, drawn=drawn)
