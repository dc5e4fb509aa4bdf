"""One plot per study and corpus for the findings, in the house style of the report; same results, same bytes."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from offramp.report.figures import HEIGHT, TALL, draw
from offramp.report.plots import CONTROLS
from offramp.report.theme import MUTED, SIGNALS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = list[dict[str, Any]]

TABLES = {
    "loss_prediction": ("loss_histogram", "loss", "share", "protocol"),
    "inference_confidence": ("risk_coverage", "coverage", "loss", "score"),
}
"""Study: which of its plain tables is drawn, and the columns x, y and group; protocols are tables of their own."""


@dataclass(frozen=True)
class Plot:
    """``rows`` with the columns ``x``, ``y`` and, for several lines, ``group``."""

    title: str
    x: str
    y: str
    group: str | None
    rows: Rows


def as_rows(figure: dict[str, Any]) -> Rows:
    """The rows of a titled table as dicts."""
    return [row if isinstance(row, dict) else dict(zip(figure["columns"], row)) for row in figure["rows"]]


def plot_of(result: dict[str, Any]) -> Plot | None:
    """What is drawn of a result file: the first figure that asks for it, else what suits its study, if anything."""
    for _, figure in sorted(result.get("figures", {}).items()):
        if isinstance(figure, dict) and figure.get("plot"):
            spec = figure["plot"]
            return Plot(figure.get("title", ""), spec["x"], spec["y"], spec.get("group"), as_rows(figure))
    corrected = {key: found["value"] for key, found in result.get("corrected", {}).get("values", {}).items()}
    if result["study"] == "exit_labels":
        return _labels(corrected)
    return _ranks(corrected) if result["study"] == "low_rank_readout" else _plain_table(result)


def _plain_table(result: dict[str, Any]) -> Plot | None:
    if result["study"] not in TABLES:
        return None
    name, x, y, group = TABLES[result["study"]]
    protocols = ("published", "corrected") if group == "protocol" else ("corrected",)
    found = {protocol: result.get("figures", {}).get(f"{name}.{protocol}", []) for protocol in protocols}
    rows = [row | {"protocol": protocol} for protocol, table in found.items() for row in table]
    title = name.replace("_", " ").capitalize()
    return Plot(title if group == "protocol" else f"{title}, corrected protocol", x, y, group, rows) if rows else None


def _labels(corrected: dict[str, float]) -> Plot | None:
    words = {"final_ppl": "routed", "random_ppl": "random"}
    rows = [{"exit decided by": key.split(".")[1], "perplexity": value, "tokens": words[key.split(".")[0]]}
            for key, value in sorted(corrected.items()) if key.split(".")[0] in words]
    title = "Perplexity by label, corrected protocol"
    return Plot(title, "perplexity", "exit decided by", "tokens", rows) if rows else None


def _ranks(corrected: dict[str, float]) -> Plot | None:
    rows = []
    for key, value in corrected.items():
        if matched := re.fullmatch(r"(?:(\w+)\.)?softmax_corr\.(\d+)", key):
            name = (matched[1] or "plain").replace("_", ", ")
            rows.append({"rank": int(matched[2]), "correlation with the exact one": value, "decomposition": name})
    title = "Softmax confidence from a low-rank readout, corrected protocol"
    return Plot(title, "rank", "correlation with the exact one", "decomposition", rows) if rows else None


def draw_plot(plot: Plot) -> str:
    """The plot as SVG: lines over a numeric x, points where x or y names things."""
    return draw(lambda axes: _paint(axes, plot), TALL if plot.group else HEIGHT)


def _paint(axes: Axes, plot: Plot) -> None:
    rows = [row for row in plot.rows if row.get(plot.x) is not None and row.get(plot.y) is not None]
    named = any(isinstance(row[name], str) for row in rows for name in (plot.x, plot.y))
    groups = list(dict.fromkeys(str(row[plot.group]) for row in rows)) if plot.group else [None]
    spare = iter([colour for name, colour in SIGNALS.items() if name not in groups] * len(groups))
    for group in groups:
        points = [row for row in rows if plot.group is None or str(row[plot.group]) == group]
        if not named:
            points.sort(key=lambda row: _value(row[plot.x]))
        control = group in CONTROLS
        colour = (MUTED if control else SIGNALS[group] if group in SIGNALS else next(spare)).light
        style = {"marker": "o", "linestyle": "none"} if named else {"linestyle": CONTROLS[group] if control else "-"}
        xs, ys = ([_value(row[name]) for row in points] for name in (plot.x, plot.y))
        axes.plot(xs, ys, label=group, color=colour, **style)
        bounds = [_interval(row[plot.y]) for row in points]
        if not named and None not in bounds:
            axes.fill_between(xs, *zip(*bounds), color=colour, alpha=0.15, linewidth=0)
    axes.set(xlabel=plot.x.replace("_", " "), ylabel=plot.y.replace("_", " "))
    if len(groups) > 1:
        axes.figure.legend(loc="outside lower center", ncols=min(3, len(groups)), columnspacing=1.4)


def _value(cell: Any) -> Any:
    """The number of a cell that may carry its interval, as {value, low, high} or [value, low, high]."""
    if isinstance(cell, dict):
        return cell["value"]
    return cell[0] if isinstance(cell, list) else cell


def _interval(cell: Any) -> tuple[float, float] | None:
    if isinstance(cell, dict) and cell.get("low") is not None:
        return cell["low"], cell["high"]
    return (cell[1], cell[2]) if isinstance(cell, list) and len(cell) == 3 and cell[1] is not None else None
