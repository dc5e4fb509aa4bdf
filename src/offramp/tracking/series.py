"""Results as what MLflow stores: ``(key, value, step)`` points.

Keys use ``/``, which the MLflow UI turns into chart sections: ``block_0/train_loss`` over optimiser steps,
``curve/ppl/learned`` over percent of tokens that leave, ``position/exit_0`` over positions.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from offramp.results.exits import FitEpoch, ThresholdEffect
from offramp.results.files import METRICS_FILES
from offramp.results.pretraining import LearningCurve
from offramp.results.routing import CurvePoint, PositionShare, ReliabilityBin
from offramp.results.shape import TableRow

Point = tuple[str, float, int]
Row = TypeVar("Row", bound=TableRow)


@dataclass(frozen=True)
class Series(Generic[Row]):
    """How a table becomes series: one per key, from the columns ``values`` over the step.

    ``key`` makes a key of a row and the name of a column. Steps are whole numbers in MLflow, so shares are
    multiplied by ``scale`` (100: percent).
    """

    table: type[Row]
    key: Callable[[Row, str], str]
    step: Callable[[Row], float]
    values: tuple[str, ...]
    scale: int = 1

    def __post_init__(self) -> None:
        if unknown := set(self.values) - set(self.table.columns()):
            raise ValueError(f"{self.table.path} has no column {', '.join(sorted(unknown))}")

    def points(self, rows: list[Row]) -> Iterator[Point]:
        """The points of all rows; empty cells are no points."""
        for row in rows:
            for column in self.values:
                value = getattr(row, column)
                if value is not None:
                    yield metric_key(self.key(row, column)), value, round(self.step(row) * self.scale)


FIT = Series(
    FitEpoch,
    key=lambda row, column: f"exit_{row.exit}/{column}",
    step=lambda row: row.epoch,
    values=("fit_loss", "select_loss"),
)
SERIES: tuple[Series, ...] = (
    FIT,
    Series(
        ThresholdEffect,
        key=lambda row, column: f"thresholds/{column}/{row.signal}",
        step=lambda row: row.threshold,
        values=("shallow_ratio", "ppl", "agreement"),
        scale=100,
    ),
    Series(
        CurvePoint,
        key=lambda row, column: f"curve/{column}/{row.signal}",
        step=lambda row: row.fraction,
        values=(
            "shallow_ratio",
            "ppl",
            "accuracy",
            "agreement",
            "layer_saving",
            "flop_saving",
            "headroom",
            "attained",
        ),
        scale=100,
    ),
    Series(
        ReliabilityBin,
        key=lambda row, column: f"reliability/exit_{row.exit}",
        step=lambda row: row.confidence,
        values=("agreement",),
        scale=100,
    ),
    Series(
        PositionShare,
        key=lambda row, column: f"position/exit_{row.exit}",
        step=lambda row: row.position,
        values=("share",),
    ),
)
"""The tables worth a chart in MLflow, beside learning curves.

loss_distribution.csv has no natural step and is only attached.
"""


def read_points(root: Path, paths: Iterable[str]) -> tuple[list[Point], list[str]]:
    """All points of the results among ``paths`` that exist, and the keys dropped as not finite.

    MLflow would store +inf as 1.8e308 and flatten every chart it appears in. Other paths have no points.
    """
    there = {path for path in paths if (root / path).is_file()}
    series = [point for path in sorted(there) for point in _table_points(root, path)]
    charted = {key for key, _, _ in series}
    singles = [
        # the value that was kept, below the series it was chosen from: the UI orders by name
        (f"kept/{key}" if key in charted else key, value, 0)
        for kind in METRICS_FILES
        if kind.path in there
        for key, value in numbers(kind.read(root).to_json()).items()
    ]
    points = singles + series
    dropped = sorted({key for key, value, _ in points if not math.isfinite(value)})
    return [point for point in points if math.isfinite(point[1])], dropped


def numbers(values: dict[str, Any]) -> dict[str, float]:
    """All numbers by path (``controls/full/ppl``); a pair is an interval: ``_low`` and ``_high``."""
    return dict(_numbers(values, ()))


def learning_curves(rows: list[LearningCurve]) -> Series[LearningCurve]:
    """The series of a training: several exits that learn in one phase each have their own."""
    exits = defaultdict(set)
    for row in rows:
        exits[row.phase].add(row.exit)

    def key(row: LearningCurve, column: str) -> str:
        # joint training looks at every exit at each step; block-wise training only at its own
        return f"{row.phase}/{column}" + (f"_exit_{row.exit}" if len(exits[row.phase]) > 1 else "")

    return Series(
        LearningCurve,
        key=key,
        step=lambda row: row.step,
        values=("train_loss", "calibration_ppl", "calibration_kl"),
    )


def curve_points(rows: Sequence[LearningCurve | FitEpoch]) -> list[Point]:
    """The points of a training's looks, which may be some of its curve, but all rows of each look."""
    looks = [row for row in rows if isinstance(row, LearningCurve)]
    fits = [row for row in rows if isinstance(row, FitEpoch)]
    return [*learning_curves(looks).points(looks), *FIT.points(fits)]


def _table_points(root: Path, path: str) -> Iterator[Point]:
    if path == LearningCurve.path:
        yield from curve_points(LearningCurve.read(root))
    for series in SERIES:
        if series.table.path == path:
            yield from series.points(series.table.read(root))


def _numbers(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _numbers(inner, (*path, name))
    elif isinstance(value, list) and len(value) == 2:
        *parents, name = path
        for suffix, inner in zip(("low", "high"), value):
            yield from _numbers(inner, (*parents, f"{name}_{suffix}"))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield metric_key("/".join(path)), float(value)


def metric_key(text: str) -> str:
    """A name as MLflow allows it."""
    return re.sub(r"[^\w./-]", "_", text, flags=re.ASCII)
