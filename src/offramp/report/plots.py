"""What each figure of the report draws: one function per figure, onto axes that figures.py has set up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from offramp.report.inputs import Measurements
from offramp.report.theme import ACCENT, INK, MUTED, PAPER, SIGNALS, exit_colours, exit_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CONTROLS = {"random": (0, (4, 2)), "gain_oracle": (0, (1, 1.4)), "loss_oracle": (0, (5, 1.5, 1, 1.5))}
"""Controls of the threshold curve and their dashes; all are grey, for they are not choices."""


def learning_curves(axes: Axes, measured: Measurements, column: str, label: str) -> None:
    table = measured.tables["learning_curves"].dropna(subset=[column])
    colours = exit_colours(measured.exits)
    one_exit_per_phase = table.groupby("phase")["exit"].nunique().le(1).all()
    for (phase, index), rows in table.groupby(["phase", "exit"], sort=True):
        name = phase if one_exit_per_phase else f"{phase}, {exit_name(index, measured.exits)}"
        millions, values = rows["tokens"] / 1e6, rows[column]
        axes.plot(millions, values, color=colours[index].light, label=name)
        if column == "calibration_ppl":
            kept = rows["step"] == measured.pretrain[phase]["best_step"]
            axes.plot(millions[kept], values[kept], "o", color=colours[index].light)
    axes.set(xlabel="training tokens (millions)", ylabel=label)
    if column == "calibration_ppl":
        plain_log_axis(axes)
    _legend(axes)


def plain_log_axis(axes: Axes) -> None:
    """A logarithmic y axis whose ticks are plain numbers."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0), numticks=12))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def loss_distribution(axes: Axes, measured: Measurements) -> None:
    table = measured.tables["loss_distribution"]
    table = table[table["split"] == "test"]
    for index, colour in enumerate(exit_colours(measured.exits)):
        rows = table[table["exit"] == index]
        axes.plot(rows["loss"], rows["share"], color=colour.light, label=exit_name(index, measured.exits))
    axes.set(xlabel="loss (nats)", ylabel="share of tokens", xlim=(0, None), ylim=(0, None))
    _percent(axes.yaxis)
    _legend(axes)


def reliability(axes: Axes, measured: Measurements) -> None:
    table = measured.tables["reliability"]
    table = table[table["tokens"] > 0]
    largest = table["tokens"].max()
    axes.plot([0, 1], [0, 1], color=MUTED.light, linestyle=(0, (4, 2)), linewidth=1)
    for index, colour in enumerate(exit_colours(measured.exits)):
        rows = table[table["exit"] == index].sort_values("confidence")
        if rows.empty:  # the last exit takes what is left and needs no confidence
            continue
        axes.plot(
            rows["confidence"],
            rows["agreement"],
            color=colour.light,
            linewidth=1,
            label=exit_name(index, measured.exits),
        )
        axes.scatter(
            rows["confidence"],
            rows["agreement"],
            s=4 + 60 * rows["tokens"] / largest,
            color=colour.light,
            linewidth=0,
        )
    axes.set(xlabel="confidence", ylabel="agrees with full depth", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    _percent(axes.yaxis)
    _legend(axes)


def threshold_curve(axes: Axes, measured: Measurements, confidence: str, column: str, label: str) -> None:
    table = measured.tables["threshold_curve"].dropna(subset=[column, "ppl"]).sort_values(["signal", column])
    groups = dict(iter(table.groupby("signal")))
    signals = sorted(set(groups) - {*CONTROLS, "fixed"}, key=lambda name: (name != confidence, name))
    for signal in signals:
        width, order = (2.4, 5) if signal == confidence else (1.2, 3)
        colour = SIGNALS.get(signal, ACCENT).light
        style = {
            "color": colour,
            "linewidth": width,
            "marker": "o",
            "markersize": width + 1.2,
            "zorder": order,
        }
        axes.plot(groups[signal][column], groups[signal]["ppl"], label=signal.replace("_", " "), **style)
    for control, dashes in CONTROLS.items():
        if control in groups:
            style = {"color": MUTED.light, "linestyle": dashes, "linewidth": 1.4, "zorder": 2}
            axes.plot(
                groups[control][column], groups[control]["ppl"], label=control.replace("_", " "), **style
            )
    if "fixed" in groups:
        fixed = groups["fixed"].sort_values("layer_saving")
        axes.plot(
            fixed[column], fixed["ppl"], "D", color=INK.light, markersize=5, zorder=6, label="fixed depths"
        )
        _label_depths(axes, fixed, column, measured.exits)
    here = measured.routing["controls"].get("signal", {})
    if here.get(column) is not None:
        ring = {"markersize": 11, "markerfacecolor": "none", "markeredgewidth": 1.6, "zorder": 7}
        axes.plot(here[column], here["ppl"], "o", markeredgecolor=INK.light, **ring)
    axes.set(xlabel=label, ylabel="perplexity")
    axes.margins(x=0.08, y=0.1)
    _percent(axes.xaxis)
    _legend(axes, outside=True)


def _label_depths(axes: Axes, fixed: pd.DataFrame, column: str, exits: int) -> None:
    """Name the fixed depths beside their diamonds, deepest first, towards the inside of the plot."""
    for rank, (x, ppl) in enumerate(zip(fixed[column], fixed["ppl"])):
        rightmost = x == fixed[column].max() and len(fixed) > 1
        offset, side = ((-8, -3), "right") if rightmost else ((4, -13), "left")
        name = exit_name(exits - 1 - rank, exits)
        halo = {"facecolor": PAPER.light, "edgecolor": "none", "pad": 0.5, "alpha": 0.8}
        axes.annotate(
            name, (x, ppl), offset, textcoords="offset points", ha=side, fontsize=8.5, bbox=halo, zorder=5
        )


def exits_by_position(axes: Axes, measured: Measurements) -> None:
    table = (
        measured.tables["exits_by_position"]
        .pivot(index="position", columns="exit", values="share")
        .fillna(0.0)
    )
    colours = exit_colours(measured.exits)
    present = [index for index in range(measured.exits) if index in table]
    axes.stackplot(
        table.index,
        *(table[index] for index in present),
        colors=[colours[index].light for index in present],
        labels=[exit_name(index, measured.exits) for index in present],
        linewidth=0,
        alpha=0.8,
    )
    axes.set(
        xlabel="position in the window",
        ylabel="share of tokens",
        ylim=(0, 1),
        xlim=(table.index.min(), table.index.max()),
    )
    axes.grid(False)
    _percent(axes.yaxis)
    _legend(axes, outside=True)


def savings(axes: Axes, measured: Measurements) -> None:
    timing = measured.timing
    bars = [
        ("layers", measured.routing["layer_saving"]),
        ("FLOPs", measured.routing["flop_saving"]),
        ("wall clock", timing["wall_saving"]),
    ]
    low, high = timing["wall_saving_low"], timing["wall_saving_high"]
    axes.plot([low, high], [2, 2], color=INK.light, linewidth=1.4, marker="|", markersize=9)
    for place, (name, value) in enumerate(bars):
        axes.barh(place, value, height=0.55, color=ACCENT.light, alpha=0.65)
        ends = (value, low, high) if name == "wall clock" else (value,)
        edge, offset, side = (max(ends), 6, "left") if value >= 0 else (min(ends), -6, "right")
        text = f"{value:.1%}".replace("-", "\N{MINUS SIGN}")
        axes.annotate(text, (edge, place), (offset, 0), textcoords="offset points", ha=side, va="center")
    axes.axvline(0, color=INK.light, linewidth=1)
    axes.set_yticks(range(3), [name for name, _ in bars])
    axes.tick_params(axis="y", length=0, labelcolor=INK.light)
    axes.invert_yaxis()
    axes.spines["left"].set_visible(False)
    axes.grid(False, axis="y")
    axes.margins(x=0.18 if min(low, *(value for _, value in bars)) >= 0 else 0.3)  # room for the labels
    axes.locator_params(axis="x", nbins=6)
    axes.set_xlabel("saved against full depth")
    _percent(axes.xaxis)


def _percent(axis: Any) -> None:
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1.0, symbol="%"))


def _legend(axes: Axes, outside: bool = False) -> None:
    """Below the plot where lines fill it, else inside; nothing at all for a single series."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) < 2:
        return
    if outside:
        columns = min(3, len(labels))
        axes.figure.legend(handles, labels, loc="outside lower center", ncols=columns, columnspacing=1.4)
    else:
        axes.legend()
