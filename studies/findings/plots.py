"""One plot per study and corpus for the findings, in the house style of the report; same results, same
bytes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from offramp.report.figures import HEIGHT, TALL, draw
from offramp.report.plots import DASHES, plain_log_axis
from offramp.report.theme import MUTED, SIGNALS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from offramp.report.theme import Colour

Rows = list[dict[str, Any]]

CHARACTERS, HANDLE, ROW = 78, 6, 0.2
"""Of a legend: characters that fit side by side, those that a line's sample takes the room of, inches of a
row.
"""


@dataclass(frozen=True)
class Plot:
    """``rows`` with the columns ``x``, ``y`` and, for several lines, ``group``.

    A figure of a result file asks for one under the key "plot", by the names of these fields. Cells of x and
    y may carry their interval, [value, low, high]: y's is a band around a line and a whisker at a point.
    """

    title: str
    x: str
    y: str
    group: str | None
    rows: Rows
    panel: str | None = None
    """A column: one panel per value, below each other, with the same groups in the same colours."""
    log: bool = False
    """Whether y has a logarithmic scale: perplexities that differ by factors."""
    points: list[str] = field(default_factory=list)
    """Groups that are no curve but single points, such as fixed depths beside a sweep of thresholds."""
    diagonal: bool = False
    """Whether x = y is drawn: where a confidence keeps its word."""
    note: str = ""
    """What a reader has to know beside it."""


def as_rows(figure: dict[str, Any]) -> Rows:
    """The rows of a titled table as dicts."""
    return [row if isinstance(row, dict) else dict(zip(figure["columns"], row)) for row in figure["rows"]]


def plot_of(figures: Mapping[str, Any]) -> Plot | None:
    """The first of a result's figures that asks to be drawn; None where none does."""
    for _, figure in sorted(figures.items()):
        if isinstance(figure, dict) and figure.get("plot"):
            return Plot(
                figure["title"],
                rows=as_rows(figure),
                note=figure.get("note", ""),
                **{"group": None} | figure["plot"],
            )
    return None


def draw_plot(plot: Plot) -> str:
    """The plot as SVG: lines over a numeric x, points where x or y names things."""
    groups = list(dict.fromkeys(str(row[plot.group]) for row in plot.rows)) if plot.group else [None]
    spare = iter([colour for name, colour in SIGNALS.items() if name not in groups] * len(groups))
    colours = {
        group: MUTED if group in DASHES else SIGNALS[group] if group in SIGNALS else next(spare)
        for group in groups
    }
    panels = list(dict.fromkeys(row[plot.panel] for row in plot.rows)) if plot.panel else [None]
    longest = max(len(str(group)) for group in groups)
    columns = max(1, min(3, len(groups), CHARACTERS // (longest + HANDLE)))
    room = max(TALL - HEIGHT, ROW * math.ceil(len(groups) / columns)) if plot.group else 0
    height = HEIGHT * (1 + 0.7 * (len(panels) - 1)) + room

    def paint(axes: Axes) -> None:
        canvas = axes.figure
        for name, part in zip(panels, _panels(axes, len(panels))):
            _paint(
                part,
                plot,
                [row for row in plot.rows if plot.panel is None or row[plot.panel] == name],
                colours,
            )
            if name is not None:
                part.set_title(str(name).replace("_", " "), loc="left", fontsize="medium")
        if len(groups) > 1:
            handles = {
                label: handle
                for part in canvas.axes
                for handle, label in zip(*part.get_legend_handles_labels())
            }
            canvas.legend(
                handles.values(), handles.keys(), loc="outside lower center", ncols=columns, columnspacing=1.4
            )

    return draw(paint, height)


def _panels(axes: Axes, count: int) -> list[Axes]:
    """``count`` axes below each other in the place of one."""
    if count == 1:
        return [axes]
    grid = axes.get_subplotspec().subgridspec(count, 1)
    parts = [axes.figure.add_subplot(cell) for cell in grid]
    axes.remove()
    return parts


def _paint(axes: Axes, plot: Plot, rows: Rows, colours: dict[str | None, Colour]) -> None:
    rows = [row for row in rows if row.get(plot.x) is not None and row.get(plot.y) is not None]
    named = any(isinstance(row[name], str) for row in rows for name in (plot.x, plot.y))
    if plot.diagonal:
        axes.axline((0, 0), slope=1, color=MUTED.light, linestyle=(0, (4, 2)), linewidth=1)
    for group, colour in colours.items():
        points = [row for row in rows if plot.group is None or str(row[plot.group]) == group]
        if not points:
            continue
        alone = named or group in plot.points
        if not alone:
            points.sort(key=lambda row: _value(row[plot.x]))
        style: dict[str, Any] = {"linestyle": DASHES.get(group, "-")}
        if alone:
            style = {"marker": "D" if group in plot.points else "o", "linestyle": "none"}
        xs, ys = ([_value(row[name]) for row in points] for name in (plot.x, plot.y))
        axes.plot(xs, ys, label=group, color=colour.light, **style)
        _intervals(axes, plot, points, alone, colour.light)
    axes.set(xlabel=plot.x.replace("_", " "), ylabel=plot.y.replace("_", " "))
    if plot.log:
        plain_log_axis(axes)
    if rows and all(isinstance(row[plot.x], int) for row in rows):  # layers, stages: no ticks between them
        axes.xaxis.get_major_locator().set_params(integer=True)


def _intervals(axes: Axes, plot: Plot, points: Rows, alone: bool, colour: str) -> None:
    """Bands around lines; whiskers at points, along whichever of x and y is a number."""
    xs, ys = ([_value(row[name]) for row in points] for name in (plot.x, plot.y))
    if not alone:
        bounds = [_interval(row[plot.y]) for row in points]
        if None not in bounds:
            axes.fill_between(xs, *zip(*bounds), color=colour, alpha=0.15, linewidth=0)
        return
    for row, x, y in zip(points, xs, ys):
        if across := _interval(row[plot.x]):
            axes.plot(across, [y, y], color=colour, linewidth=1)
        if along := _interval(row[plot.y]):
            axes.plot([x, x], along, color=colour, linewidth=1)


def _value(cell: Any) -> Any:
    """The number of a cell that may carry its interval, as {value, low, high} or [value, low, high]."""
    if isinstance(cell, dict):
        return cell["value"]
    return cell[0] if isinstance(cell, list) else cell


def _interval(cell: Any) -> tuple[float, float] | None:
    if isinstance(cell, dict) and cell.get("low") is not None:
        return cell["low"], cell["high"]
    return (cell[1], cell[2]) if isinstance(cell, list) and len(cell) == 3 and cell[1] is not None else None
