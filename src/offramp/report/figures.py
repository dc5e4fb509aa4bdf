"""The figures of the report as SVG text: small multiples of one size, readable at phone width.

Same tables, same bytes: element ids come from a fixed salt and no date is written. matplotlib is imported
when figures are drawn and used through its object interface: no display, no global state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from io import StringIO
from typing import TYPE_CHECKING, Any

from offramp.report import plots
from offramp.report.answer import best_free
from offramp.report.inputs import Measurements
from offramp.report.theme import INK, MUTED, PAPER, RULE
from offramp.report.trade_off import trade_off

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH, HEIGHT, TALL = 4.8, 3.3, 4.2
"""Inches, tall where a legend needs room: narrow, so that 9-point text is 9 pixels or more on a phone."""

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: selectable, and set in the reader's font
    "svg.hashsalt": "offramp",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": MUTED.light,
    "axes.labelcolor": INK.light,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE.light,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED.light,
    "ytick.color": MUTED.light,
    "text.color": INK.light,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 1.8,
    "lines.linewidth": 1.6,
    "lines.markersize": 4,
}


@dataclass(frozen=True)
class Figure:
    """A drawing with the words around it."""

    name: str
    title: str
    caption: str
    svg: str


LEAD = ("trade_off_ppl", "trade_off_agreement")
"""The figures that stand at the top of the page."""


def draw_figures(measured: Measurements, confidence: str) -> list[Figure]:
    """All figures, in reading order; ``confidence`` is the signal that routed, drawn strongest."""
    controls = f"{measured.routing.control_tokens:,} control tokens"
    free = {aim: best_free(measured, aim) for aim in ("ppl", "agreement")}
    drawings: list[tuple[str, str, str, Callable[[Axes], None]]] = [
        (
            "trade_off_ppl",
            "What saving FLOPs costs in perplexity",
            f"Lower is better; on {controls}. Random exits are the floor, the divergence oracle is the "
            "attainable ceiling. Of the signals that need no training, the one in colour is "
            "best on calibration text.",
            lambda axes: trade_off(
                axes,
                measured.curve,
                confidence,
                free["ppl"],
                value=lambda row: row.ppl,
                label="perplexity",
                ceiling=True,
            ),
        ),
        (
            "trade_off_agreement",
            "What it costs in agreement with full depth",
            f"Higher is better: the share of predictions that are those of full depth; on {controls}. The "
            "divergence oracle is no ceiling here, so it is not drawn.",
            lambda axes: trade_off(
                axes,
                measured.curve,
                confidence,
                free["agreement"],
                value=lambda row: row.agreement,
                label="agrees with full depth",
                ceiling=False,
            ),
        ),
        (
            "learning_train_loss",
            "Training loss",
            "On training batches, by tokens seen since the phase began.",
            lambda axes: plots.learning_curves(
                axes, measured, lambda row: row.train_loss, "training loss (nats)"
            ),
        ),
        (
            "learning_calibration_ppl",
            "Perplexity while training",
            "On the calibration split, log scale; the dot is the look whose weights were kept.",
            lambda axes: plots.learning_curves(
                axes, measured, lambda row: row.calibration_ppl, "calibration perplexity", mark_kept=True
            ),
        ),
        (
            "loss_distribution",
            "Loss per exit",
            "Share of test tokens by their loss at each exit: what a deeper exit buys, and for which tokens.",
            lambda axes: plots.loss_distribution(axes, measured),
        ),
        (
            "reliability",
            "Reliability of the confidence",
            "Test tokens that reached an exit, binned by confidence: how often its prediction equals the "
            "full-depth one. On the dashed line 0.7 means 70%. Dot area is the number of tokens.",
            lambda axes: plots.reliability(axes, measured),
        ),
        (
            "curve_shallow_ratio",
            "Perplexity by share of early exits",
            "Lines differ in which tokens leave: at every exit, the same share by each signal's ranking; on "
            f"{controls}. Random exits are the floor, the divergence oracle is the ceiling that can be "
            "attained; the gain oracle knows the next token. Diamonds are fixed depths, the ring is the "
            "threshold of this run.",
            lambda axes: plots.threshold_curve(axes, measured, confidence),
        ),
        (
            "exits_by_position",
            "Exit by position",
            "Share of test tokens taking each exit, by position in the window.",
            lambda axes: plots.exits_by_position(axes, measured),
        ),
        (
            "savings",
            "Three savings",
            "Layers skipped, FLOPs not executed, seconds not spent. The whisker is the 95% interval from the "
            "timed pairs.",
            lambda axes: plots.savings(axes, measured),
        ),
    ]
    return [
        Figure(name, title, caption, draw(paint, TALL if name.startswith(("curve", "trade")) else HEIGHT))
        for name, title, caption, paint in drawings
    ]


def draw(paint: Callable[[Axes], None], height: float) -> str:
    """The SVG of what ``paint`` puts onto axes, in the style of all figures; ``height`` in inches."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(_STYLE):
        canvas = Canvas(figsize=(WIDTH, height), layout="constrained", facecolor=PAPER.light)
        FigureCanvasSVG(canvas)
        axes = canvas.subplots()
        axes.set_facecolor(PAPER.light)
        paint(axes)
        out = StringIO()
        canvas.savefig(
            out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    return out.getvalue()
