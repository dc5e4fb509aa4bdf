"""Whether to use early exit at all: a row per exit, and what an oracle would save."""

from __future__ import annotations

from collections.abc import Callable
from math import exp

from offramp.analysis.oracle import BOUNDS, readout_in_use
from offramp.report.findings import Cell, Row, percent, perplexity
from offramp.report.theme import exit_name
from offramp.results.shape import Interval
from offramp.results.suitability import ExitWorth, Suitability
from offramp.vocabulary import LOOKS_AT


def columns(result: Suitability) -> list[str]:
    """Heads of the table, by how the exits were read out."""
    kinds = list(result.oracle)
    return [
        "FLOPs saved",
        *(f"{name}, {kind}" for name in ("agreement", "perplexity") for kind in kinds),
        *(f"break-even, {looks_at}" for looks_at in LOOKS_AT),
    ]


def rows(result: Suitability) -> list[Row]:
    """One row per exit: a break-even cell is the share by FLOPs, with that by the clock beneath."""
    exits, kinds = result.rows, list(result.oracle)
    return [
        Row(
            exit_name(row.exit, len(exits)),
            f"after layer {row.layers} of {exits[-1].layers}",
            _cells(row, kinds),
        )
        for row in exits
    ]


def oracle(result: Suitability) -> str:
    """What an oracle saves, in a sentence; of the tuned readouts where there are any."""
    bounds = result.oracle[readout_in_use(result.oracle)]
    saved = (f"{percent(getattr(bounds, name).flop_saving)} {kept}" for name, kept in BOUNDS.items())
    return f"An oracle that asks nothing saves of the FLOPs: {'; '.join(saved)}."


def _cells(row: ExitWorth, kinds: list[str]) -> list[Cell]:
    readouts = [row.readouts[kind] for kind in kinds]
    cells = [
        Cell(percent(row.flop_saving)),
        *(_with_interval(readout.agreement, readout.agreement_interval, percent) for readout in readouts),
        *(_with_interval(readout.nll, readout.nll_interval, _from_nats) for readout in readouts),
    ]
    if not row.break_even:
        return cells + [Cell("\N{EN DASH}")] * len(LOOKS_AT)
    return cells + [
        Cell(_share(row.flops(looks_at)), f"{_share(row.seconds(looks_at))} by the clock")
        for looks_at in LOOKS_AT
    ]


def _with_interval(value: float, bounds: Interval | None, form: Callable[[float], str]) -> Cell:
    return Cell(form(value), f"{form(bounds[0])} to {form(bounds[1])}" if bounds else "")


def _from_nats(nll: float) -> str:
    return perplexity(exp(nll))


def _share(value: float | None) -> str:
    return "never" if value is None else percent(value)
