"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from studies.common.results import Interval, number


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table; every cell as ``cell`` writes it."""
    lines = [list(columns), ["---"] * len(columns), *([cell(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(entry.replace("|", "\\|") for entry in line) + " |" for line in lines)


def cell(value: Any) -> str:
    """A table's cell: a number, an Interval or [value, low, high], an interval [low, high], or text."""
    if isinstance(value, Interval):
        value = [value.value, value.low, value.high]
    if isinstance(value, dict):
        bounds = (value.get("low"), value.get("high"))
        value = [value["value"], *(bound for bound in bounds if bound is not None)]
    if isinstance(value, list | tuple):
        *first, low, high = value if len(value) > 1 else [*value, None, None]
        interval = [f"[{number(low)}, {number(high)}]"] if low is not None else []
        return " ".join([*map(cell, first), *interval])
    if value is None:
        return "-"
    return number(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
