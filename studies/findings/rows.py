"""Rows of the ledger, and how many of them hold, fail and so on."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offramp.errors import UserError
from studies.findings.tables import markdown
from studies.ledger.claims import Statement, read_claims, read_questions
from studies.ledger.ledger import ANSWERED, COLUMNS, GIVEN, LEDGER, QUESTION_COLUMNS
from studies.ledger.verdict import VERDICTS

APART = "not comparable"
"""The verdict that no total counts."""

JUDGED = tuple(verdict for verdict in VERDICTS if verdict != APART)
"""Verdicts in the order in which they are shown."""

COUNTED = {
    "holds": ("holds", "hold"),
    "holds only corrected": ("holds only corrected", "hold only corrected"),
    "artefact": ("is an artefact", "are artefacts"),
    "fails": ("fails", "fail"),
    "not reproduced at this scale": ("is not reproduced at this scale", "are not reproduced at this scale"),
    "inconclusive": ("is inconclusive", "are inconclusive"),
}
WRITTEN = {
    "before": "before any result",
    "after_pilot": "after a pilot",
    "after_results": "with the results known",
}
"""When a rule was written, in words."""

Row = dict[str, Any]
"""A row of claims.csv or questions.csv, with its study and its corrected figure with the interval."""


@dataclass(frozen=True)
class Counts:
    """Rows of the ledger by kind and verdict: conclusions and figures, without those that no total counts."""

    rows: list[Row]

    @property
    def conclusions(self) -> list[Row]:
        return [row for row in self.rows if row["kind"] == "conclusion" and row["verdict"] != APART]

    @property
    def figures(self) -> list[Row]:
        """Figures that merely describe."""
        return [row for row in self.rows if row["kind"] == "figure" and row["verdict"] != APART]

    @property
    def constructions(self) -> list[Row]:
        """Rows that hold by construction, whatever their verdict."""
        return [row for row in self.rows if row["kind"] == "construction"]

    @property
    def not_comparable(self) -> list[Row]:
        return [row for row in self.rows if row["kind"] != "construction" and row["verdict"] == APART]

    @property
    def in_words(self) -> str:
        """How conclusions come out."""
        return in_words(self.conclusions)

    @property
    def figures_in_words(self) -> str:
        return in_words(self.figures)

    @property
    def by_written(self) -> str:
        """Conclusions and figures by when their rules were written: a table."""
        kinds = {"conclusions": self.conclusions, "figures": self.figures}
        rows = [
            [kind, words, *numbers(row for row in of_kind if row["written"] == written)]
            for kind, of_kind in kinds.items()
            for written, words in WRITTEN.items()
            if any(row["written"] == written for row in of_kind)
        ]
        return markdown(["", "rule written", "number", *JUDGED], rows)


def read_ledger(home: Path) -> tuple[list[Row], list[Row]]:
    """The rows of claims.csv and of questions.csv. UserError if one is missing or was not written from claims
    and questions as they are.
    """
    claims = _ledger_rows(home / LEDGER, COLUMNS, read_claims(home))
    return claims, _ledger_rows(home / ANSWERED, QUESTION_COLUMNS, read_questions(home))


def _ledger_rows(path: Path, columns: Sequence[str], statements: Sequence[Statement]) -> list[Row]:
    remedy = "run `python -m studies ledger`"
    if not path.exists():
        raise UserError(f"{path} is missing; {remedy}")
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        rows: list[Row] = list(reader)
    given = [name for name in columns if name in GIVEN]
    as_they_are = [[str(getattr(one, name) or "") for name in given] for one in statements]
    if reader.fieldnames != list(columns) or [[row[name] for name in given] for row in rows] != as_they_are:
        raise UserError(f"{path} was not written from studies/*/ as they are; {remedy}")
    for row, statement in zip(rows, statements):
        interval = f" [{row['ci_low']}, {row['ci_high']}]" if row["ci_low"] else ""
        row |= {"corrected_text": f"{row['corrected']}{interval}" or "-", "study": statement.study}
    return rows


def numbers(rows: Iterable[Row]) -> list[int]:
    """How many rows, and how many of each verdict in the order of ``JUDGED``."""
    number_of = Counter(row["verdict"] for row in rows)
    return [number_of.total(), *(number_of[verdict] for verdict in JUDGED)]


def in_words(rows: Sequence[Row]) -> str:
    """How many hold, fail and so on; verdicts that none has are left out."""
    number_of = Counter(row["verdict"] for row in rows)
    parts = [
        f"{number_of[verdict]} {COUNTED[verdict][number_of[verdict] != 1]}"
        for verdict in JUDGED
        if number_of[verdict]
    ]
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
