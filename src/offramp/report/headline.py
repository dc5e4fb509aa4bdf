"""The result of a pipeline run as a table to read: routing beside its controls."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from offramp.report.answer import worth_it
from offramp.report.promises import in_short
from offramp.results.pretraining import Pretraining
from offramp.results.routing import FixedDepth, Quality, RoutedMeasures, Routing, Timing
from offramp.results.shape import Interval
from offramp.results.shortfalls import shortfalls
from offramp.results.suitability import Suitability
from offramp.vocabulary import CONTROLS, DIVERGENCE_ORACLE, RANDOM

COLUMNS = ("ppl", "accuracy", "early", "layers saved", "FLOPs saved", "time saved")

CEILINGS = {RANDOM: "the floor", DIVERGENCE_ORACLE: "attainable"}
"""What two of the controls are, in the narrow first column."""


def headline_table(root: Path) -> Table | None:
    """The routed model, its fixed depths and its controls on equal tokens; None before `evaluate` has run."""
    routing = Routing.read_if_there(root)
    if routing is None:
        return None
    controls, signal = routing.controls, f"the signal ({routing.confidence})"
    table = Table(title=_title(routing), title_justify="left", box=None, pad_edge=False, header_style="bold")
    table.add_column("tokens leave by", no_wrap=True)
    for name in COLUMNS:
        table.add_column(name, justify="right")
    table.add_row("full depth", *_cells(controls.full))
    for exit, depth in enumerate(controls.fixed):
        table.add_row(f"all at exit {exit}", *_cells(depth))
    routed = _cells(routing, ppl_interval=routing.interval.ppl, timing=Timing.read_if_there(root))
    table.add_row(signal, *routed, style="bold")
    table.add_row()
    table.add_row(f"[dim]equal shares, {routing.control_tokens:,} tokens:")
    for name, control in CONTROLS.items():
        note = f" ({CEILINGS[name]})" if name in CEILINGS else ""
        table.add_row(f"{control.label}{note}", *_cells(controls.named(name)))
        if name == RANDOM:  # between the floor and the ceilings
            table.add_row(signal, *_cells(controls.signal), style="bold")
    return table


def headline_sentence(root: Path) -> str | None:
    """What the table says, in one line; None before `evaluate` has run."""
    routing = Routing.read_if_there(root)
    if routing is None:
        return None
    increase = routing.ppl / routing.controls.full.ppl - 1
    saving = routing.flop_saving
    flops = f"{abs(saving):.0%} {'fewer' if saving >= 0 else 'more'} FLOPs than full depth for "
    allowed = f" ({in_short(routing.quality)})" if routing.quality else ""
    warning = headline_warning(root)
    if warning:
        flops, warning = "", f"{warning} "
    rise = f"{increase:+.1%}{_between(routing.interval.ppl_increase)} perplexity{allowed}"
    return (
        f"{warning or ''}{routing.shallow_ratio:.0%} of the tokens leave early: {flops}{rise}. "
        f"Attained {_share(routing.attained, routing.interval.attained)} of what a "
        "signal can: 0 is random exits, 1 the divergence oracle. Headroom "
        f"{_share(routing.headroom, routing.interval.headroom)}: 1 would be the gain oracle, which knows the "
        "next token."
    )


def headline_warning(root: Path) -> str | None:
    """That routing does not pay, and why; None where it does, and before `evaluate` has run."""
    routing = Routing.read_if_there(root)
    short = shortfalls(routing) if routing else []
    if not short:
        return None
    reasons = " and ".join(reason.short for reason in short)
    return f"WARNING: routing is {reasons}. {' '.join(reason.sentence for reason in short)}"


def _share(value: float | None, bounds: Interval | None) -> str:
    if value is None:  # where floor and ceiling tie, for instance if no token or every token leaves
        return "undefined"
    return f"{value:.2f}" + (" [{:.2f}, {:.2f}]".format(*bounds) if bounds else "")


def _between(bounds: Interval | None) -> str:
    return " [{:.1%}, {:.1%}]".format(*bounds) if bounds else ""


def headline_answer(root: Path) -> str | None:
    """Whether early exit is worth it; None before `pretrain`, `suitability` and `evaluate` have run."""
    trained, suitability = Pretraining.read_if_there(root), Suitability.read_if_there(root)
    routing = Routing.read_if_there(root)
    if not (trained and suitability and routing):
        return None
    return worth_it(suitability.advice, routing, trained.parameters)


def print_headline(root: Path) -> None:
    """Print table, sentence and whether it is worth it; nothing before `evaluate` has run."""
    table = headline_table(root)
    if table is not None:
        sentence, warned = headline_sentence(root), headline_warning(root) is not None
        said = Text(sentence or "", style="bold red" if warned else "")
        console().print("", table, "", said, "", Text(headline_answer(root) or ""), "", sep="\n")


def console(stream: TextIO | None = None) -> Console:
    """A console on stdout, wide enough for tables where that is no terminal (DVC's pipe, a log file)."""
    stream = stream or sys.stdout
    return Console(file=stream, width=None if stream.isatty() else 120, highlight=False)


def _title(routing: Routing) -> str:
    thresholds = ", ".join(f"{value:.3g}" for value in routing.threshold.values())
    return (
        f"Routing at threshold {thresholds or f'by price {routing.price}'}: {routing.tokens:,} test tokens "
        f"of {routing.documents:,} documents"
    )


def _cells(row: Quality, *, ppl_interval: Interval | None = None, timing: Timing | None = None) -> list[str]:
    """A row's cells under COLUMNS; empty where it has no such measure."""
    ppl = f"{row.ppl:.2f}"
    if ppl_interval:
        ppl += " [{:.2f}, {:.2f}]".format(*ppl_interval)
    saved = ["", ""]
    if isinstance(row, FixedDepth | RoutedMeasures):
        saved = [f"{row.layer_saving:.1%}", f"{row.flop_saving:.1%}"]
    seconds = ""
    if timing:
        seconds = f"{timing.wall_saving:.1%} [{{:.0%}}, {{:.0%}}]".format(*timing.wall_saving_interval)
    return [ppl, f"{row.accuracy:.3f}", f"{row.shallow_ratio:.1%}", *saved, seconds]
