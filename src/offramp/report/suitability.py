"""Whether to use early exit at all: a row per exit, and what oracles save; for the page and the console."""

from __future__ import annotations

from collections.abc import Callable
from math import exp

from rich.table import Table

from offramp.analysis.oracle import ALLOWED_RISE, BOUNDS, RISES, readout_in_use
from offramp.report.findings import Cell, Row, percent, perplexity
from offramp.report.theme import exit_name
from offramp.results.shape import Interval
from offramp.results.suitability import (
    Attainable,
    AttainableBounds,
    ExitWorth,
    GainBounds,
    ReadoutQuality,
    Suitability,
)
from offramp.vocabulary import CONTROLS, DIVERGENCE_ORACLE, GAIN_ORACLE, LOOKS_AT


def columns(result: Suitability) -> list[str]:
    """Heads of the table, by how the exits were read out."""
    kinds = list(result.oracle)
    return [
        "FLOPs saved",
        *(f"{name}, {kind}" for name in ("agreement", "perplexity", "can leave") for kind in kinds),
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
    """What oracles save that ask nothing, in sentences; of the tuned readouts where there are any."""
    bounds = result.oracle[readout_in_use(result.oracle)]
    attainable, gain = CONTROLS[DIVERGENCE_ORACLE], CONTROLS[GAIN_ORACLE]
    return (
        f"FLOPs saved by the {attainable.label} ({attainable.note}): {_attainable(bounds.attainable)}. "
        f"By the {gain.label} ({gain.note}): {_gain(bounds.gain)}."
    )


def table(result: Suitability) -> Table:
    """What ``analysis.suitability`` measured, for the console; intervals below the values."""
    kinds, timing = list(result.oracle), result.timing
    caption = ["FLOPs saved by oracles that ask nothing:"]
    caption += [
        f"{CONTROLS[name].label}, {kind}: {saved}."
        for kind, bounds in result.oracle.items()
        for name, saved in (
            (DIVERGENCE_ORACLE, _attainable(bounds.attainable)),
            (GAIN_ORACLE, _gain(bounds.gain)),
        )
    ]
    caption += [
        "Raw: the last readout on the earlier state; tuned: the exit's own. Below: 95 % over windows.",
        f"Can leave: share that the divergence oracle lets go there at {ALLOWED_RISE:.0%} more perplexity.",
        "Break-even: share that must leave before asking pays, in FLOPs / by the clock, for a signal of the "
        "state and one of the readout;",
        f"{timing.rounds} batches of {timing.tokens} tokens in turn on {timing.machine}.",
    ]
    out = Table(
        title=f"{result.model}: {result.tokens:,} tokens in {result.sequences:,} windows of {result.window}",
        caption="\n".join(caption),
    )
    headings = (
        "exit",
        "after layer",
        "FLOPs saved",
        *(f"{name} {kind}" for name in ("agreement", "NLL", "can leave") for kind in kinds),
        *(f"break-even {looks_at}" for looks_at in LOOKS_AT),
    )
    for heading in headings:
        out.add_column(heading, justify="right")
    for row in result.rows:
        readouts = [row.readouts[kind] for kind in kinds]
        cells = [_three_digits(readout.agreement, readout.agreement_interval) for readout in readouts]
        cells += [_three_digits(readout.nll, readout.nll_interval) for readout in readouts]
        if row.break_even:
            cells += [_leaving(readout) for readout in readouts]
            cells += [f"{_share(row.flops(kind))} / {_share(row.seconds(kind))}" for kind in LOOKS_AT]
        out.add_row(str(row.exit), str(row.layers), percent(row.flop_saving), *cells)
    return out


def _attainable(bounds: AttainableBounds) -> str:
    """The saving at every rise, with its interval and what random exits save."""
    parts: list[str] = []
    for name, rise in RISES.items():
        bound: Attainable = getattr(bounds, name)
        low_high = " [{}, {}]".format(*map(percent, bound.interval)) if bound.interval else ""
        of_what, whose = ("", "") if parts else (" more perplexity", "random exits ")
        chance = f"({whose}{percent(bound.random_saving)})"
        parts.append(f"{percent(bound.flop_saving)}{low_high} at {rise:.0%}{of_what} {chance}")
    return ", ".join(parts)


def _gain(bounds: GainBounds) -> str:
    return "; ".join(f"{percent(getattr(bounds, name).flop_saving)} {kept}" for name, kept in BOUNDS.items())


def _cells(row: ExitWorth, kinds: list[str]) -> list[Cell]:
    readouts = [row.readouts[kind] for kind in kinds]
    cells = [
        Cell(percent(row.flop_saving)),
        *(_with_interval(readout.agreement, readout.agreement_interval, percent) for readout in readouts),
        *(_with_interval(readout.nll, readout.nll_interval, _from_nats) for readout in readouts),
    ]
    if not row.break_even:
        return cells + [Cell("\N{EN DASH}")] * (len(kinds) + len(LOOKS_AT))
    cells += [Cell(_leaving(readout)) for readout in readouts]
    return cells + [
        Cell(_share(row.flops(looks_at)), f"{_share(row.seconds(looks_at))} by the clock")
        for looks_at in LOOKS_AT
    ]


def _with_interval(value: float, bounds: Interval | None, form: Callable[[float], str]) -> Cell:
    return Cell(form(value), f"{form(bounds[0])} to {form(bounds[1])}" if bounds else "")


def _from_nats(nll: float) -> str:
    return perplexity(exp(nll))


def _three_digits(value: float, bounds: Interval | None) -> str:
    return f"{value:.3f}" + (f"\n{bounds[0]:.3f} {bounds[1]:.3f}" if bounds else "")


def _leaving(readout: ReadoutQuality) -> str:
    return "\N{EN DASH}" if readout.can_leave is None else percent(readout.can_leave)


def _share(value: float | None) -> str:
    return "never" if value is None else percent(value)
