"""What is attainable by the depth of the exit, as bars on a terminal and as a figure of the page.

Every exit stands alone, and all of them together beside it: the FLOPs that the divergence oracle saves at
each rise in perplexity, with their intervals, and what random exits save.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from offramp.analysis.oracle import RISES, readout_in_use
from offramp.report.theme import ACCENT, MUTED, SIGNALS
from offramp.report.words import percent
from offramp.results.suitability import Attainable, AttainableBounds, Suitability

if TYPE_CHECKING:
    from matplotlib.axes import Axes

WIDTH = 44
"""Characters of the longest bar."""
BLOCKS, ASCII = "█▓░", "#=-"
"""Up to the interval's low end, from there to the value, and on to its high end."""
TERMINAL = {"rise_1": "blue", "rise_3": "yellow", "rise_5": "green"}
COLOURS = {"rise_1": ACCENT, "rise_3": SIGNALS["max_prob"], "rise_5": SIGNALS["entropy"]}
"""Of the rises in perplexity."""
ALL = "all together"


class Depth(NamedTuple):
    """What is attainable with an exit alone."""

    layers: int
    bounds: AttainableBounds


def by_depth(result: Suitability) -> list[Depth]:
    """The early exits in order of depth; none where they were not measured one by one."""
    kind = readout_in_use(result.oracle)
    return [
        Depth(row.layers, bounds)
        for row in result.rows
        if (bounds := row.readouts[kind].attainable) is not None
    ]


def best_exit(result: Suitability, rise: str) -> tuple[int, Attainable]:
    """The layers after which the best single exit stands, and what is attainable there at a rise."""
    depths = by_depth(result)
    best = max(depths, key=lambda depth: getattr(depth.bounds, rise).flop_saving)
    return best.layers, getattr(best.bounds, rise)


class Bars:
    """The picture for a terminal: depth downwards, what is attainable to the right."""

    def __init__(self, result: Suitability):
        self.result = result

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        depths = by_depth(self.result)
        if not depths:
            return
        blocks = ASCII if options.ascii_only else BLOCKS
        layers, together = self.result.rows[-1].layers, self.result.oracle[readout_in_use(self.result.oracle)]
        bounds = {f"after layer {depth.layers} of {layers}": depth.bounds for depth in depths}
        bounds[ALL] = together.attainable
        largest = max(_high(bound) for of_exit in bounds.values() for _, bound in _rises(of_exit))
        out = Table.grid(padding=(0, 1))
        for _ in range(5):
            out.add_column()
        for name, of_exit in bounds.items():
            for place, (rise, bound) in enumerate(_rises(of_exit)):
                out.add_row(
                    "" if place else name,
                    f"+{RISES[rise]:.0%}",
                    Text(_bar(bound, largest, blocks), style=TERMINAL[rise]),
                    in_words(bound),
                    Text(f"random {percent(bound.random_saving)}", style="dim"),
                )
        yield Text(
            "Attainable saving of FLOPs by the exit in use, by the perplexity that it may cost "
            f"({blocks[0]} to the interval's low end, {blocks[1]} to the value, {blocks[2]} to the high end)"
        )
        yield out


def _rises(bounds: AttainableBounds) -> Iterator[tuple[str, Attainable]]:
    return ((rise, getattr(bounds, rise)) for rise in RISES)


def _high(bound: Attainable) -> float:
    return max(bound.flop_saving, bound.interval[1] if bound.interval else 0.0)


def _bar(bound: Attainable, largest: float, blocks: str) -> str:
    low = min(bound.flop_saving, bound.interval[0] if bound.interval else bound.flop_saving)
    ends = [
        round(WIDTH * end / largest) if largest > 0 else 0 for end in (low, bound.flop_saving, _high(bound))
    ]
    return "".join(block * (end - start) for block, start, end in zip(blocks, [0, *ends], ends))


def in_words(bound: Attainable) -> str:
    """The saving, with its interval."""
    low_high = " [{}, {}]".format(*map(percent, bound.interval)) if bound.interval else ""
    return percent(bound.flop_saving) + low_high


def paint(axes: Axes, result: Suitability) -> None:
    """Depth to the right, what is attainable upwards: a line per rise in perplexity.

    Whiskers are intervals, small circles random exits; dashes are all exits together.
    """
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    depths, layers = by_depth(result), result.rows[-1].layers
    together = result.oracle[readout_in_use(result.oracle)].attainable
    places = [depth.layers for depth in depths]
    for rise, allowed in RISES.items():
        colour, bounds = COLOURS[rise].light, [getattr(depth.bounds, rise) for depth in depths]
        savings = [bound.flop_saving for bound in bounds]
        ends = [bound.interval or [bound.flop_saving] * 2 for bound in bounds]
        below_above = [
            [max(0.0, saving - low) for saving, (low, _) in zip(savings, ends)],
            [max(0.0, high - saving) for saving, (_, high) in zip(savings, ends)],
        ]
        axes.errorbar(
            places,
            savings,
            below_above,
            color=colour,
            marker="o",
            capsize=2.5,
            label=f"{allowed:.0%} more perplexity",
        )
        chance = [bound.random_saving for bound in bounds]
        axes.plot(places, chance, "o", color=colour, markerfacecolor="none", markersize=3, linewidth=0)
        axes.axhline(getattr(together, rise).flop_saving, color=colour, linestyle=(0, (4, 2)), linewidth=1)
    axes.plot([], [], "o", color=MUTED.light, markerfacecolor="none", markersize=3, label="random exits")
    axes.plot([], [], color=MUTED.light, linestyle=(0, (4, 2)), linewidth=1, label=ALL)
    axes.set(xlabel=f"the exit stands after layer (of {layers})", ylabel="attainable saving of FLOPs")
    axes.set(xlim=(0, layers), ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol="%"))
    handles, labels = axes.get_legend_handles_labels()
    axes.figure.legend(handles, labels, loc="outside lower center", ncols=2, columnspacing=1.4)
