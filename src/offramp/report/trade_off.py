"""What a share of FLOPs costs: floor, signals and attainable ceiling, in perplexity and in agreement.

Coloured are the signal in use, the learned one, and the best of the free ones; the other signals are grey.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from offramp.report.plots import grouped, label_depths, legend, percent_axis
from offramp.report.theme import ACCENT, INK, MUTED, SIGNALS
from offramp.results.routing import CurvePoint
from offramp.vocabulary import CONTROLS, DIVERGENCE_ORACLE, FIXED, LEARNED, RANDOM

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FLOOR: dict[str, Any] = {"color": INK.light, "linestyle": (0, (1.2, 1.6)), "linewidth": 1.6, "zorder": 4}
CEILING: dict[str, Any] = {"color": INK.light, "linestyle": (0, (7, 2)), "linewidth": 1.6, "zorder": 4}
REST: dict[str, Any] = {"color": MUTED.light, "linewidth": 0.9, "alpha": 0.45, "zorder": 2}


def trade_off(
    axes: Axes,
    curve: list[CurvePoint],
    confidence: str,
    free: str | None,
    *,
    value: Callable[[CurvePoint], float],
    label: str,
    ceiling: bool,
) -> None:
    """``value`` over the FLOPs saved, on control tokens: ``confidence`` strongest, ``free`` beside it.

    ``ceiling``: with the divergence oracle, which is the ceiling of perplexity and of nothing else.
    """
    lines = grouped(sorted(curve, key=lambda row: row.flop_saving), lambda row: row.signal)

    def draw(name: str, **style: Any) -> None:
        rows = lines[name]
        axes.plot([row.flop_saving for row in rows], [value(row) for row in rows], **style)

    coloured = [name for name in dict.fromkeys((confidence, LEARNED, free)) if name in lines]
    for name in coloured:
        strong, colour = name == confidence, SIGNALS.get(name or "", ACCENT).light
        draw(
            name or "",
            color=colour,
            linewidth=2.6 if strong else 1.8,
            marker="o",
            markersize=4,
            zorder=6 if strong else 5,
            label=f"{(name or '').replace('_', ' ')}{' (in use)' if strong else ''}",
        )
    if ceiling and DIVERGENCE_ORACLE in lines:
        draw(DIVERGENCE_ORACLE, **CEILING, label=f"{CONTROLS[DIVERGENCE_ORACLE].label} (ceiling)")
    if RANDOM in lines:
        draw(RANDOM, **FLOOR, label=f"{CONTROLS[RANDOM].label} (floor)")
    rest = sorted(set(lines) - {*coloured, *CONTROLS, FIXED})
    for place, name in enumerate(rest):
        draw(name, **REST, label="_" if place else "other signals")
    if FIXED in lines:
        rows = sorted(lines[FIXED], key=lambda row: row.layer_saving)
        saved, values = [row.flop_saving for row in rows], [value(row) for row in rows]
        axes.plot(saved, values, "D", color=INK.light, markersize=5, zorder=7, label="fixed depths")
        label_depths(axes, saved, values, len(rows), beside=not ceiling)
    axes.set(xlabel="FLOPs saved", ylabel=label)
    axes.margins(x=0.08, y=0.1)
    percent_axis(axes.xaxis)
    if not ceiling:
        percent_axis(axes.yaxis)
    legend(axes, outside=True, columns=2)
