"""Whether to use early exit at all: a row per exit, and what oracles save; for the page and the console."""

from __future__ import annotations

from collections.abc import Callable
from math import exp, log
from pathlib import Path
from typing import Any

from rich.table import Table

from offramp.analysis.advice import SIGNAL
from offramp.analysis.oracle import ALLOWED_RISE, BOUNDS, RISES, readout_in_use
from offramp.artifacts.files import write_text
from offramp.report.attainable import best_exit, by_depth, in_words, paint
from offramp.report.figures import TALL, Figure, draw
from offramp.report.findings import Cell, Row
from offramp.report.html import inline, page_of
from offramp.report.theme import exit_name, palette
from offramp.report.words import percent, perplexity
from offramp.results.shape import Interval
from offramp.results.suitability import (
    LEAST_SQUARES,
    Attainable,
    AttainableBounds,
    BreakEven,
    CheckpointSuitability,
    ExitWorth,
    GainBounds,
    ReadoutQuality,
    Suitability,
    TimedText,
)
from offramp.vocabulary import CONTROLS, DIVERGENCE_ORACLE, GAIN_ORACLE, RAW, TUNED

TEMPLATE = Path(__file__).with_name("checkpoint.html")
NOISY = 1.5
"""How many times as long as the fastest plain pass the slowest may take before the clock is doubted."""
LARGE = log(1e6)
"""Nats from which on no perplexity is written out."""
KINDS = {RAW: "raw", LEAST_SQUARES: "least squares", TUNED: "tuned"}
"""What tables call the ways to read an exit out."""
MEANING = {
    RAW: "the last exit's readout on the earlier state",
    LEAST_SQUARES: "the same behind an affine map of the normed state that was fitted to full depth's",
    TUNED: "the exit's own",
}


def section(result: Suitability) -> dict[str, Any]:
    """What the page's section says, by the names in suitability.html."""
    return {
        "advice": f"{result.advice.sentence} {result.advice.clock} {result.advice.propagation}",
        "signal": SIGNAL[result.looks_at],
        "columns": columns(result),
        "rows": rows(result),
        "oracle": oracle(result),
        "tokens": result.tokens,
        "sequences": result.sequences,
        "kinds": _meaning(result),
        "timing": _timing(result.timing),
        "grouped_by": result.grouped_by,
    }


def write(result: CheckpointSuitability, folder: Path) -> None:
    """Write ``suitability.json`` and the page, ``suitability.html``, to a folder."""
    result.write(folder)
    write_text(folder / "suitability.html", page(result))


def page(result: CheckpointSuitability) -> str:
    """The measurement of a checkpoint as a page that is complete in itself."""
    from markupsafe import Markup

    colours = palette(len(result.exits))
    figure = Figure(
        "attainable",
        "Attainable saving by depth",
        "FLOPs that the divergence oracle saves with one exit in use, by the perplexity that it may cost, "
        f"and (dashes) with all. Whiskers: 95% intervals over {result.grouped_by}.",
        draw(lambda axes: paint(axes, result), TALL),
    )
    facts = {
        "Model": f"{result.model}, {result.rows[-1].layers} layers, {result.precision}",
        "Text": _source(result),
        "Measured on": f"{result.tokens:,} tokens in {result.sequences:,} windows of {result.window}",
        "Best exit": _best(result),
        "Machine": result.timing.machine,
    }
    return page_of(
        TEMPLATE,
        [],
        colours,
        model=result.model,
        verdict=result.advice.verdict,
        facts=facts,
        suitability=section(result),
        figure=figure,
        svg=Markup(inline(figure, colours)),
    )


def _best(result: Suitability) -> str:
    """The best single exit at every rise, beside all together."""
    together = result.oracle[readout_in_use(result.oracle)].attainable
    parts = []
    for rise, allowed in RISES.items():
        layers, bound = best_exit(result, rise)
        parts.append(
            f"at {allowed:.0%} more perplexity after layer {layers} {in_words(bound)}, all together "
            f"{in_words(getattr(together, rise))}"
        )
    return "; ".join(parts)


def _source(result: CheckpointSuitability) -> str:
    """Where the text is from, and which part of it served what."""
    text = result.text
    resampled = f"; intervals resample {text.groups:,} {result.grouped_by} of these"
    if result.grouped_by == "documents":
        resampled = ""
    return (
        f"{text.source}. Fitted on {text.fit_tokens:,} tokens of {_documents(text.fit_documents)}, measured "
        f"on {_documents(text.documents)}{resampled}"
    )


def _documents(count: int) -> str:
    return f"{count:,} document{'s' * (count != 1)}"


def _timing(timing: TimedText) -> str:
    """What was timed, and how far the clock can be trusted."""
    words = f"{timing.rounds} batches of {timing.tokens:,} tokens in turn on {timing.machine}"
    if timing.seconds is None:
        return words
    least, most = timing.seconds
    doubt = ""
    if most > NOISY * least:
        doubt = ": too far apart for shares by the clock to mean much, measure again on an idle machine"
    return f"{words}; plain passes took {least:.3g} to {most:.3g} s{doubt}"


def _meaning(result: Suitability) -> str:
    return "; ".join(f"{KINDS[kind]}: {MEANING[kind]}" for kind in result.oracle)


def columns(result: Suitability) -> list[str]:
    """Heads of the table, by how the exits were read out."""
    kinds = list(result.oracle)
    return [
        "FLOPs saved",
        *(f"{name}, {KINDS[kind]}" for name in ("agreement", "perplexity", "can leave") for kind in kinds),
        f"break-even, {result.looks_at}",
    ]


def rows(result: Suitability) -> list[Row]:
    """One row per exit: a break-even cell is the share by FLOPs, with what the clock says beneath."""
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
        f"{CONTROLS[name].label}, {KINDS[kind]}: {saved}."
        for kind, bounds in result.oracle.items()
        for name, saved in (
            (DIVERGENCE_ORACLE, _attainable(bounds.attainable)),
            (GAIN_ORACLE, _gain(bounds.gain)),
        )
    ]
    caption += [
        f"{_meaning(result)}. Below: 95 % over {result.grouped_by}.",
        f"Can leave: share that the divergence oracle lets go there at {ALLOWED_RISE:.0%} more perplexity.",
        f"Break-even: share that must leave before asking {SIGNAL[result.looks_at]} pays, in FLOPs; below, "
        f"by the clock: {_timing(timing)}.",
    ]
    if by_depth(result):
        caption.append(f"Best single exit, {KINDS[readout_in_use(result.oracle)]}: {_best(result)}.")
    if isinstance(result, CheckpointSuitability):
        caption.append(f"Text: {_source(result)}.")
    out = Table(
        title=f"{result.model}: {result.tokens:,} tokens in {result.sequences:,} windows of {result.window}",
        caption="\n".join(caption),
        caption_justify="left",
    )
    headings = (
        "exit",
        "after layer",
        "FLOPs saved",
        *(f"{name} {KINDS[kind]}" for name in ("agreement", "NLL", "can leave") for kind in kinds),
        f"break-even {result.looks_at}",
    )
    for heading in headings:
        out.add_column(heading, justify="right")
    for row in result.rows:
        readouts = [row.readouts[kind] for kind in kinds]
        cells = [_three_digits(readout.agreement, readout.agreement_interval) for readout in readouts]
        cells += [_three_digits(readout.nll, readout.nll_interval) for readout in readouts]
        if row.break_even:
            cells += [_leaving(readout) for readout in readouts]
            cells += [f"{_share(row.break_even.flops)}\n{_clock(row.break_even)}"]
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
        return cells + [Cell("\N{EN DASH}")] * (len(kinds) + 1)
    cells += [Cell(_leaving(readout)) for readout in readouts]
    return [*cells, Cell(_share(row.break_even.flops), f"by the clock: {_clock(row.break_even)}")]


def _with_interval(value: float, bounds: Interval | None, form: Callable[[float], str]) -> Cell:
    return Cell(form(value), f"{form(bounds[0])} to {form(bounds[1])}" if bounds else "")


def _from_nats(nll: float) -> str:
    """The perplexity, as a power of e where it is out of all proportion, as that of raw exits may be."""
    return perplexity(exp(nll)) if nll < LARGE else f"e^{nll:.1f}"


def _three_digits(value: float, bounds: Interval | None) -> str:
    return f"{value:.3f}" + (f"\n{bounds[0]:.3f} {bounds[1]:.3f}" if bounds else "")


def _leaving(readout: ReadoutQuality) -> str:
    return "\N{EN DASH}" if readout.can_leave is None else percent(readout.can_leave)


def _share(value: float | None) -> str:
    return "never" if value is None else percent(value)


def _clock(asked: BreakEven) -> str:
    """The share by the clock with its interval, or that it shows none."""
    if asked.clock == "inconclusive" or asked.seconds is None:
        return "never" if asked.clock == "never" else "inconclusive"
    bounds = asked.seconds_interval
    return percent(asked.seconds) + (f" [{percent(bounds[0])}, {percent(bounds[1])}]" if bounds else "")
