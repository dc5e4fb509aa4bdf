"""What the benchmarks measured."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from offramp.artifacts.files import write_json
from offramp.results.shape import Interval, Record, TableRow, file_text, ill_shaped

PATH = "metrics/benchmarks.json"
"""Relative to the project's folder."""


class Benchmark(Record):
    """One measurement, what it is held against, and whether it met the bar."""

    name: str
    value: float
    unit: str
    bar: str | None
    """``<= x`` or ``>= x``; null for a figure that is only reported."""
    held_against: str
    n: int
    """Pairs of measurements behind the value."""
    interval: Interval | None
    met: bool | None
    machine: str


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
    wall_saving: float | None
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
