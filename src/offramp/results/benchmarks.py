"""What the benchmarks measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, Self

from pydantic import TypeAdapter, ValidationError, model_validator

from offramp.artifacts.files import write_json
from offramp.results.shape import Interval, Record, TableRow, file_text, ill_shaped

PATH = "metrics/benchmarks.json"
"""Relative to the project's folder."""


Verdict = Literal["met", "missed", "not established"]


class Benchmark(Record):
    """One measurement, what it is held against, and what that says of its bar."""

    name: str
    value: float
    unit: str
    bar: str | None
    """``<= x`` or ``>= x``; null for a figure that is only reported."""
    held_against: str
    n: int
    """Independent repetitions behind the value: what the interval resamples."""
    interval: Interval | None
    """95 %; null where there are too few repetitions to tell."""
    verdict: Verdict | None
    """What ``verdict`` says of value, interval and bar; null where there is no bar."""
    machine: str
    commit: str | None
    """Short hash of the code that was measured, ``+`` after it where files had changed; null without git."""
    date: str
    """Of the measurement, ISO 8601."""

    @model_validator(mode="after")
    def _verdict_follows_the_rule(self) -> Self:
        by_rule = verdict(self.value, self.interval, self.bar)
        if self.verdict != by_rule:
            raise ValueError(f"{self.name}: the verdict is {self.verdict}, by the rule it is {by_rule}")
        return self


def verdict(value: float, interval: Sequence[float] | None, bar: str | None) -> Verdict | None:
    """Whether a value meets its bar, ``<= x`` or ``>= x``, as far as its interval [low, high] can tell.

    ``met`` where the value and both ends of its interval meet it, ``missed`` where none of them does, else
    ``not established``, as without an interval. None without a bar; ValueError for one of another form.
    """
    if bar is None:
        return None
    relation, _, bound = bar.partition(" ")
    if relation not in ("<=", ">="):
        raise ValueError(f"bar {bar!r}: it must begin with '<= ' or '>= '")
    if interval is None:
        return "not established"
    edge = float(bound)
    meets = {one <= edge if relation == "<=" else one >= edge for one in (value, *interval)}
    if len(meets) > 1:
        return "not established"
    return "met" if meets.pop() else "missed"


class ParetoPoint(TableRow):
    """Exits of a model chosen on calibration text for a budget or at a fixed depth, measured on test text."""

    path = "metrics/plots/pareto.csv"

    model: str
    signal: str
    first_exit: int
    budget: float | None
    """Share of the full-depth FLOPs; empty where everybody leaves at one exit."""
    shallow_ratio: float
    ppl: float
    ppl_increase: float
    agreement: float
    bits_per_byte: float
    flop_saving: float
    calibration_windows: int
    calibration_ppl_increase: float
    calibration_ppl_increase_high: float
    calibration_flop_saving: float


def read_benchmarks(file: Path) -> dict[str, Benchmark]:
    """All benchmarks of a file by name; UserError where it is missing or of another shape."""
    try:
        rows = TypeAdapter(list[Benchmark]).validate_json(file_text(file))
    except ValidationError as error:
        raise ill_shaped(file, error) from None
    return {row.name: row for row in rows}


def write_benchmarks(file: Path, benchmarks: Iterable[Benchmark]) -> None:
    """Write a file of benchmarks, by name, as a whole."""
    write_json(file, [row.to_json() for row in sorted(benchmarks, key=lambda row: row.name)])
