"""What the page answers first: verdict, three figures, thresholds to choose from, which signal for what.

Whatever is advised here was chosen on calibration text; test text only shows what came of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import exp

from offramp.analysis.oracle import readout_in_use
from offramp.report.inputs import Measurements
from offramp.report.promises import in_short
from offramp.report.words import percent, signed, whole
from offramp.results.routing import Allowance, Routing, Timing
from offramp.results.shape import Interval
from offramp.results.shortfalls import shortfalls
from offramp.results.suitability import Advice
from offramp.vocabulary import FIXED, LEARNED

RISE, DISAGREEMENT = 0.01, 0.05
"""The allowances at which signals are compared: more perplexity, and other predictions than full depth's."""
NEAR = 0.0005
"""A threshold as near as that is the one in force."""


@dataclass(frozen=True)
class KeyFigure:
    """One of the three figures: its name, its value, and the interval beneath with what it is of."""

    name: str
    value: str
    note: str


@dataclass(frozen=True)
class TokenSet:
    """Tokens that numbers of the page stand on, with full depth's perplexity there."""

    name: str
    tokens: int
    full_ppl: float
    used_for: str


def verdict(measured: Measurements) -> str:
    """The run in a sentence, for the page's title; never a saving where routing does not pay."""
    routing = measured.routing
    if not routing.controls.fixed:
        return "This model has no early exit, so there is nothing to save"
    if short := shortfalls(routing):
        return f"{_routing(routing)} does not pay: " + " and ".join(reason.short for reason in short)
    saving, rise = routing.flop_saving, signed(routing.ppl_increase)
    flops = f"{percent(abs(saving))} of the FLOPs" + ("" if saving >= 0 else " more")
    allowed = f" ({in_short(routing.quality)})" if routing.quality else ""
    return (
        f"{_routing(routing)} {'saves' if saving >= 0 else 'costs'} {flops} for {rise} perplexity"
        f"{_brackets(routing.interval.ppl_increase, signed)}{allowed}, {_time(measured.timing)}"
    )


def worth_it(advice: Advice, routing: Routing, parameters: int) -> str:
    """Whether early exit is worth it for the model of a run, at best and as it ran, in a line."""
    ran = ""
    if routing.controls.fixed and not shortfalls(routing):
        saved, rise = percent(routing.flop_saving), signed(routing.ppl_increase)
        ran = f" Executed in this run: {saved} of the FLOPs saved at {rise} perplexity."
    return f"Is early exit worth it for this model of {parameters:,} parameters? {advice.sentence}{ran}"


def _routing(routing: Routing) -> str:
    if routing.price is not None:
        return f"Early exit at a price of {routing.price:g} nats"
    thresholds = ", ".join(f"{value:.3g}" for value in routing.threshold.values())
    return f"Early exit at threshold {thresholds}" if thresholds else "Early exit"


def _time(timing: Timing) -> str:
    low, high = timing.wall_saving_interval
    if low <= 0 <= high:
        return "with no measurable change in time"
    wall = timing.wall_saving
    return f"in {percent(abs(wall))} {'less' if wall >= 0 else 'more'} time"


def key_figures(measured: Measurements) -> list[KeyFigure]:
    """Perplexity, FLOPs and time against full depth, each with its paired interval."""
    routing, timing = measured.routing, measured.timing
    bounds = timing.wall_saving_interval
    unclear = bounds[0] <= 0 <= bounds[1]
    documents = f"95% over {routing.documents} documents, paired with full depth"
    return [
        KeyFigure(
            "perplexity",
            signed(routing.ppl_increase),
            _note(routing.interval.ppl_increase, signed, documents),
        ),
        KeyFigure(
            "FLOPs saved",
            percent(routing.flop_saving),
            _note(routing.interval.flop_saving, percent, documents),
        ),
        KeyFigure(
            "time saved",
            "no measurable change" if unclear else percent(timing.wall_saving),
            _note(bounds, percent, f"from {timing.pairs} interleaved pairs"),
        ),
    ]


def _note(bounds: Interval | None, form: Callable[[float], str], of_what: str) -> str:
    return f"[{form(bounds[0])}, {form(bounds[1])}] {of_what}" if bounds else "no interval"


def _brackets(bounds: Interval | None, form: Callable[[float], str]) -> str:
    return f" [{form(bounds[0])}, {form(bounds[1])}]" if bounds else ""


def allowances(measured: Measurements, aim: str, signal: str) -> list[Allowance]:
    """What a signal may do for an aim, by rising allowance."""
    rows = [row for row in measured.allowances if row.aim == aim and row.signal == signal]
    return sorted(rows, key=lambda row: row.allowed)


def best(measured: Measurements, aim: str, *, free: bool = False) -> Allowance | None:
    """The signal that saves most FLOPs on calibration text, at the allowance at which signals are compared.

    ``free``: of those that nothing was trained for. None where none saves anything.
    """
    allowed = RISE if aim == "ppl" else DISAGREEMENT
    rows = [
        row
        for row in measured.allowances
        if row.aim == aim and row.allowed == allowed and not (free and row.signal == LEARNED)
    ]
    row = max(rows, key=lambda row: row.flop_saving, default=None)
    return row if row and row.flop_saving > 0 else None


def best_free(measured: Measurements, aim: str) -> str | None:
    """The name of the free signal to draw beside the one in use; where none saves, the one that costs least
    at the largest allowance."""
    if row := best(measured, aim, free=True):
        return row.signal
    rows = [row for row in measured.allowances if row.aim == aim and row.signal != LEARNED]
    return max(rows, key=lambda row: (row.allowed, row.flop_saving)).signal if rows else None


def which_signal(measured: Measurements) -> str:
    """Which signal for which aim, in a sentence."""
    ppl, agreement = best(measured, "ppl"), best(measured, "agreement")
    if ppl is None and agreement is None:
        return (
            f"No signal saves FLOPs at {whole(RISE)} more perplexity, nor at {whole(1 - DISAGREEMENT)} "
            "agreement with full depth (by calibration text)."
        )
    parts = []
    for row, aim, place in (
        (ppl, "keep perplexity", f"at {whole(RISE)} more of it"),
        (agreement, "predict what full depth predicts", f"at {whole(1 - DISAGREEMENT)} agreement"),
    ):
        if row is None:
            parts.append(f"to {aim}: none saves FLOPs {place}")
            continue
        others = [
            other
            for other in measured.allowances
            if (other.aim, other.allowed) == (row.aim, row.allowed) and other.signal != row.signal
        ]
        second = max(others, key=lambda other: other.flop_saving, default=None)
        beside = f", {second.signal} {percent(second.flop_saving)}" if second else ""
        parts.append(f"to {aim}: {row.signal} ({percent(row.flop_saving)} of FLOPs {place}{beside})")
    return f"Which signal for which aim, by calibration text: {'; '.join(parts)}."


def next_commands(measured: Measurements, confidence: str) -> dict[str, str]:
    """What to try next, by what it is for: the best signal and threshold for perplexity, and for agreement
    where that is another signal."""
    ppl, agreement = best(measured, "ppl"), best(measured, "agreement")
    commands = {}
    if ppl:
        if ppl.signal == confidence and _done(measured.routing, ppl):
            ppl = max(allowances(measured, "ppl", ppl.signal), key=lambda row: row.flop_saving)
        commands[f"at most {whole(ppl.allowed)} more perplexity"] = _command(ppl, confidence)
    if agreement and (ppl is None or agreement.signal != ppl.signal):
        purpose = f"{whole(1 - agreement.allowed)} agreement with full depth"
        commands[purpose] = _command(agreement, confidence)
    return commands or {"an answer to whether this model should exit early at all": "offramp suitability"}


def _command(row: Allowance, confidence: str) -> str:
    change = "" if row.signal == confidence else f" -S exits.confidence={row.signal}"
    return f"dvc exp run{change} -S threshold={row.threshold:g}"


def _done(routing: Routing, row: Allowance) -> bool:
    """Whether the run had that threshold, or found one for the same allowance by executing candidates."""
    if routing.quality and routing.quality.allowed == row.allowed:
        return True
    known = routing.threshold.values()
    return bool(known) and all(abs(value - row.threshold) < NEAR for value in known)


def token_sets(measured: Measurements) -> list[TokenSet]:
    """The texts behind the page's numbers; their perplexities differ as the texts do."""
    routing, suitability = measured.routing, measured.suitability
    sets = [
        TokenSet(
            "test split",
            routing.tokens,
            routing.controls.full.ppl,
            f"all {routing.documents} test documents: verdict, key figures, result table's first part",
        )
    ]
    full = [row for row in measured.curve if row.signal == FIXED and row.shallow_ratio == 0]
    sets += [
        TokenSet(
            "control tokens",
            routing.control_tokens,
            row.ppl,
            "evenly spaced test windows: floor, ceilings, curves by exit share",
        )
        for row in full[:1]
    ]
    readout = suitability.rows[-1].readouts[readout_in_use(suitability.oracle)]
    sets.append(
        TokenSet(
            "suitability",
            suitability.tokens,
            exp(readout.nll),
            f"{suitability.sequences} test windows: whether to exit early at all",
        )
    )
    sets += [
        TokenSet("calibration", row.tokens, row.full_ppl, "held-out text: thresholds, which signal")
        for row in measured.allowances[:1]
    ]
    return sets


def two_savings(measured: Measurements) -> str:
    """Why leaving at exit 0 saves less among others than alone; empty where it does not, or without exits."""
    if not measured.routing.controls.fixed:
        return ""
    alone, among = measured.routing.controls.fixed[0].flop_saving, measured.suitability.rows[0].flop_saving
    if percent(alone) == percent(among):
        return ""
    return (
        f"Leaving at exit 0 saves {percent(alone)} of the FLOPs where every token does, and {percent(among)} "
        "for a token that leaves while others go on: it still makes keys and values for them in later layers."
    )
