"""What each figure of the report draws: one function per figure, onto axes that figures.py has set up."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from offramp.report.inputs import Measurements
from offramp.report.theme import ACCENT, INK, MUTED, PAPER, SIGNALS, exit_colours, exit_name
from offramp.results.pretraining import LearningCurve
from offramp.results.routing import CurvePoint
from offramp.vocabulary import CONTROLS, DIVERGENCE_ORACLE, FIXED, GAIN_ORACLE, LOSS_ORACLE, RANDOM

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

DASHES = {
    RANDOM: (0, (4, 2)),
    LOSS_ORACLE: (0, (5, 1.5, 1, 1.5)),
    DIVERGENCE_ORACLE: (0, (8, 1.5)),
    GAIN_ORACLE: (0, (1, 1.4)),
}
"""Controls of the threshold curve and their dashes; all are grey, for they are not choices."""

Key = TypeVar("Key", bound=Hashable)
Line = TypeVar("Line")


def learning_curves(
    axes: Axes,
    measured: Measurements,
    value: Callable[[LearningCurve], float | None],
    label: str,
    *,
    mark_kept: bool = False,
) -> None:
    """A line per phase and exit over the tokens seen.

    ``mark_kept`` puts a dot at the look whose weights were kept, and makes the axis logarithmic.
    """
    looks = [row for row in measured.learning_curves if _number(value(row))]
    colours, lines = exit_colours(measured.exits), grouped(looks, lambda row: (row.phase, row.exit))
    one_exit_per_phase = len({phase for phase, _ in lines}) == len(lines)
    for (phase, exit), rows in sorted(lines.items()):
        name = phase if one_exit_per_phase else f"{phase}, {exit_name(exit, measured.exits)}"
        colour = colours[exit].light
        axes.plot(*_over_tokens(rows, value), color=colour, label=name)
        if mark_kept:
            kept = [row for row in rows if row.step == measured.pretraining.phases[phase].best_step]
            axes.plot(*_over_tokens(kept, value), "o", color=colour)
    axes.set(xlabel="training tokens (millions)", ylabel=label)
    if mark_kept:
        plain_log_axis(axes)
    legend(axes)


def plain_log_axis(axes: Axes) -> None:
    """A logarithmic y axis whose ticks are plain numbers."""
    from matplotlib.ticker import LogLocator, NullLocator, StrMethodFormatter

    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0), numticks=12))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,g}"))
    axes.yaxis.set_minor_locator(NullLocator())


def loss_distribution(axes: Axes, measured: Measurements) -> None:
    """Share of test tokens by their loss, a line per exit."""
    lines = grouped((row for row in measured.losses if row.split == "test"), lambda row: row.exit)
    for exit, colour in enumerate(exit_colours(measured.exits)):
        rows = lines.get(exit, [])
        axes.plot(
            [row.loss for row in rows],
            [row.share for row in rows],
            color=colour.light,
            label=exit_name(exit, measured.exits),
        )
    axes.set(xlabel="loss (nats)", ylabel="share of tokens", xlim=(0, None), ylim=(0, None))
    percent_axis(axes.yaxis)
    legend(axes)


def reliability(axes: Axes, measured: Measurements) -> None:
    """Agreement with full depth over confidence, a line per exit; a dot's area is its number of tokens."""
    bins = [row for row in measured.reliability if row.tokens > 0]
    largest = max((row.tokens for row in bins), default=0)
    lines = grouped(bins, lambda row: row.exit)
    axes.plot([0, 1], [0, 1], color=MUTED.light, linestyle=(0, (4, 2)), linewidth=1)
    for exit, colour in enumerate(exit_colours(measured.exits)):
        if exit not in lines:  # the last exit takes what is left and needs no confidence
            continue
        rows = sorted(lines[exit], key=lambda row: row.confidence)
        confidence, agreement = [row.confidence for row in rows], [row.agreement for row in rows]
        sizes = [4 + 60 * row.tokens / largest for row in rows]
        name = exit_name(exit, measured.exits)
        axes.plot(confidence, agreement, color=colour.light, linewidth=1, label=name)
        axes.scatter(confidence, agreement, s=sizes, color=colour.light, linewidth=0)
    axes.set(xlabel="confidence", ylabel="agrees with full depth", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    percent_axis(axes.yaxis)
    legend(axes)


def threshold_curve(axes: Axes, measured: Measurements, confidence: str) -> None:
    """Perplexity by the share that leaves: every signal (``confidence`` strongest), controls, fixed depths.

    The ring is where this run stands.
    """
    points = [row for row in measured.curve if _number(row.ppl)]
    lines = grouped(sorted(points, key=lambda row: row.shallow_ratio), lambda row: row.signal)
    signals = sorted(set(lines) - {*DASHES, FIXED}, key=lambda name: (name != confidence, name))
    for signal in signals:
        width, order = (2.4, 5) if signal == confidence else (1.2, 3)
        colour = SIGNALS.get(signal, ACCENT).light
        style: dict[str, Any] = {
            "color": colour,
            "linewidth": width,
            "marker": "o",
            "markersize": width + 1.2,
            "zorder": order,
        }
        axes.plot(*_xy(lines[signal]), label=signal.replace("_", " "), **style)
    for control, dashes in DASHES.items():
        if control in lines:
            style = {"color": MUTED.light, "linestyle": dashes, "linewidth": 1.4, "zorder": 2}
            axes.plot(*_xy(lines[control]), label=CONTROLS[control].label, **style)
    if FIXED in lines:
        fixed = sorted(lines[FIXED], key=lambda row: row.layer_saving)
        axes.plot(*_xy(fixed), "D", color=INK.light, markersize=5, zorder=6, label="fixed depths")
        label_depths(axes, *_xy(fixed), measured.exits)
    run = measured.routing.controls.signal
    ring: dict[str, Any] = {"markersize": 11, "markerfacecolor": "none", "markeredgewidth": 1.6, "zorder": 7}
    axes.plot(run.shallow_ratio, run.ppl, "o", markeredgecolor=INK.light, **ring)
    axes.set(xlabel="tokens leaving early", ylabel="perplexity")
    axes.margins(x=0.08, y=0.1)
    percent_axis(axes.xaxis)
    legend(axes, outside=True)


def label_depths(
    axes: Axes, saved: list[float], values: list[float], exits: int, *, beside: bool = False
) -> None:
    """Name the fixed depths at their diamonds, deepest first, towards the inside of the plot.

    Below them, or ``beside`` them where lines go down from them.
    """
    for rank, (x, y) in enumerate(zip(saved, values)):
        rightmost = x == max(saved) and len(saved) > 1
        offset, side = ((-8, -3), "right") if rightmost else ((8, -3) if beside else (4, -13), "left")
        name = exit_name(exits - 1 - rank, exits)
        halo = {"facecolor": PAPER.light, "edgecolor": "none", "pad": 0.5, "alpha": 0.8}
        axes.annotate(
            name, (x, y), offset, textcoords="offset points", ha=side, fontsize=8.5, bbox=halo, zorder=5
        )


def exits_by_position(axes: Axes, measured: Measurements) -> None:
    """Share of the tokens that take each exit, stacked, over positions in the window."""
    positions = sorted({row.position for row in measured.positions})
    shares = {(row.exit, row.position): row.share for row in measured.positions}
    colours = exit_colours(measured.exits)
    present = sorted({exit for exit, _ in shares})
    axes.stackplot(
        positions,
        *([shares.get((exit, position), 0.0) for position in positions] for exit in present),
        colors=[colours[exit].light for exit in present],
        labels=[exit_name(exit, measured.exits) for exit in present],
        linewidth=0,
        alpha=0.8,
    )
    axes.set(
        xlabel="position in the window",
        ylabel="share of tokens",
        ylim=(0, 1),
        xlim=(positions[0], positions[-1]),
    )
    axes.grid(False)
    percent_axis(axes.yaxis)
    legend(axes, outside=True)


def savings(axes: Axes, measured: Measurements) -> None:
    """The three savings as bars; a whisker on that of the clock."""
    timing = measured.timing
    bars = [
        ("layers", measured.routing.layer_saving),
        ("FLOPs", measured.routing.flop_saving),
        ("wall clock", timing.wall_saving),
    ]
    low, high = timing.wall_saving_interval
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
    percent_axis(axes.xaxis)


def grouped(rows: Iterable[Line], key: Callable[[Line], Key]) -> dict[Key, list[Line]]:
    """The rows by their key, in their order."""
    groups: dict[Key, list[Line]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return dict(groups)


def _number(value: float | None) -> bool:
    return value is not None and not math.isnan(value)


def _over_tokens(
    rows: list[LearningCurve], value: Callable[[LearningCurve], float | None]
) -> tuple[list[float], list[Any]]:
    return [row.tokens / 1e6 for row in rows], [value(row) for row in rows]


def _xy(points: list[CurvePoint]) -> tuple[list[float], list[float]]:
    return [point.shallow_ratio for point in points], [point.ppl for point in points]


def percent_axis(axis: Axis) -> None:
    """Shares as per cent."""
    from matplotlib.ticker import PercentFormatter

    axis.set_major_formatter(PercentFormatter(1.0, symbol="%"))


def legend(axes: Axes, outside: bool = False, columns: int = 3) -> None:
    """Below the plot where lines fill it, else inside; nothing at all for a single series."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) < 2:
        return
    if outside:
        ncols = min(columns, len(labels))
        axes.figure.legend(handles, labels, loc="outside lower center", ncols=ncols, columnspacing=1.4)
    else:
        axes.legend()
