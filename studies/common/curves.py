"""Tables of curves, as figures of a result file: one line per arm, with a band over random seeds.

Only where every random seed has a value is there a row: a band over fewer would pass for one over all. A
single run has no band.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from studies.common.results import over_seeds

Curve = Mapping[float, float]
"""y by x: perplexity by update, stage or number of layers, accuracy by threshold."""


def curve_rows(curves: Sequence[Curve], *names: str) -> list[list[Any]]:
    """Rows [*names, x, y] of one arm, x rising, y as [mean, low, high] over its random seeds, or as it is
    from a single run."""
    shared = sorted(set(curves[0]).intersection(*curves[1:]))
    if len(curves) == 1:
        return [[*names, x, curves[0][x]] for x in shared]
    rows = []
    for x in shared:
        interval = over_seeds([{"y": curve[x]} for curve in curves])["y"]
        rows.append([*names, x, [interval["value"], interval["low"], interval["high"]]])
    return rows


def curves_figure(
    title: str, arms: Mapping[str, Sequence[Curve]], x: str, y: str, note: str = "", **plot: Any
) -> dict[str, Any]:
    """A figure of an ``Outcome``: curves of each arm, per random seed, drawn against each other.

    ``plot``: further fields of ``studies.findings.plots.Plot``, such as ``log=True`` or ``points=["fixed
    depth"]``.
    """
    rows = [row for arm, curves in arms.items() for row in curve_rows(curves, arm)]
    return {
        "title": title,
        "note": note,
        "columns": ["arm", x, y],
        "rows": rows,
        "plot": {"x": x, "y": y, "group": "arm", **plot},
    }


def panels_figure(
    title: str,
    panels: Mapping[str, Mapping[str, Sequence[Curve]]],
    panel: str,
    x: str,
    y: str,
    note: str = "",
    **plot: Any,
) -> dict[str, Any]:
    """The same in several panels, by the value of the column ``panel`` (a size of text, a protocol)."""
    rows = [
        row
        for name, arms in panels.items()
        for arm, curves in arms.items()
        for row in curve_rows(curves, name, arm)
    ]
    return {
        "title": title,
        "note": note,
        "columns": [panel, "arm", x, y],
        "rows": rows,
        "plot": {"x": x, "y": y, "group": "arm", "panel": panel, **plot},
    }
