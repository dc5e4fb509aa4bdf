"""Metrics files as what MLflow stores: ``(key, value, step)`` points.

Keys use ``/``, which the MLflow UI turns into chart sections: ``block_0/train_loss`` over optimiser steps,
``curve/ppl/learned`` over percent of tokens that leave, ``position/exit_0`` over positions.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Point = tuple[str, float, int]


@dataclass(frozen=True)
class Series:
    """How a CSV file becomes series: one per key, from ``values`` columns over the ``step`` column.

    ``key`` is a template over the columns and ``{value}``, the name of the value's column. Steps are whole
    numbers in MLflow, so shares are multiplied by ``scale`` (100: percent).
    """

    key: str
    step: str
    values: tuple[str, ...]
    scale: int = 1


ROUTED = ("shallow_ratio", "ppl", "accuracy", "agreement", "layer_saving", "flop_saving", "headroom")
SERIES = {
    "learning_curves.csv": Series(
        "{phase}/{value}", "step", ("train_loss", "calibration_ppl", "calibration_kl")
    ),
    "exit_fit.csv": Series("exit_{exit}/{value}", "epoch", ("fit_loss", "select_loss")),
    "thresholds.csv": Series(
        "thresholds/{value}/{signal}", "threshold", ("shallow_ratio", "ppl", "agreement"), scale=100
    ),
    "threshold_curve.csv": Series("curve/{value}/{signal}", "fraction", ROUTED, scale=100),
    "reliability.csv": Series("reliability/exit_{exit}", "confidence", ("agreement",), scale=100),
    "exits_by_position.csv": Series("position/exit_{exit}", "position", ("share",)),
}
"""The tables worth a chart in MLflow; the others (loss_distribution.csv has no natural step) are only attached."""


def read_points(files: list[Path]) -> tuple[list[Point], list[str]]:
    """All points of some metrics files, and the keys of those dropped because they are not finite.

    MLflow would store +inf as 1.8e308 and flatten every chart it appears in.
    """
    series = [point for file in files if file.name in SERIES for point in table_points(file)]
    taken = {key for key, _, _ in series}
    singles = [
        # the value that was kept, beside the series it was chosen from
        (f"best/{key}" if key in taken else key, value, 0)
        for file in files
        if file.suffix == ".json"
        for key, value in json_values(file).items()
    ]
    points = singles + series
    dropped = sorted({key for key, value, _ in points if not math.isfinite(value)})
    return [point for point in points if math.isfinite(point[1])], dropped


def json_values(file: Path) -> dict[str, float]:
    """The numbers in a JSON file by path (``controls/full/ppl``); a pair is an interval: ``_low`` and ``_high``."""
    return dict(_numbers(json.loads(file.read_text(encoding="utf-8")), ()))


def table_points(file: Path) -> Iterator[Point]:
    """The points of one CSV file named in ``SERIES``; empty cells are no points."""
    series = SERIES[file.name]
    with open(file, encoding="utf-8", newline="") as lines:
        rows = list(csv.DictReader(lines))
    exits: dict[str, set[str]] = {}
    for row in rows:
        exits.setdefault(row.get("phase", ""), set()).add(row.get("exit", ""))
    for row in rows:
        step = round(float(row[series.step]) * series.scale)
        # joint training looks at every exit at each step; block-wise training only at its own
        several = "phase" in row and len(exits[row["phase"]]) > 1
        for value in series.values:
            if row.get(value, "") != "":  # not every training has a divergence
                key = series.key.format(**row, value=value) + (f"_exit_{row['exit']}" if several else "")
                yield _key(key), float(row[value]), step


def _numbers(value: Any, path: tuple[str, ...]) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _numbers(inner, (*path, name))
    elif isinstance(value, list) and len(value) == 2:
        *parents, name = path
        for suffix, inner in zip(("low", "high"), value):
            yield from _numbers(inner, (*parents, f"{name}_{suffix}"))
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield _key("/".join(path)), float(value)


def _key(text: str) -> str:
    return re.sub(r"[^\w./-]", "_", text, flags=re.ASCII)
