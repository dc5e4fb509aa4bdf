"""What the numbers say: the result table and the sentences over it, both computed, in every case.

A saving or a share is a fraction in the metrics and a percentage here; perplexities and nats stay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from offramp.report.inputs import Measurements
from offramp.report.promises import in_full
from offramp.report.theme import exit_name
from offramp.report.words import nats, percent, perplexity, points, signed
from offramp.results.routing import FixedDepth, Quality, RoutedMeasures, Routing
from offramp.results.shape import Interval
from offramp.vocabulary import CONTROLS, RANDOM

AGREE = 0.05
"""Savings within five points of one another are said to agree."""

COLUMNS = (
    "perplexity",
    "accuracy",
    "agreement",
    "early exits",
    "layers saved",
    "FLOPs saved",
    "time saved",
)
"""Heads of the result table's columns."""


@dataclass(frozen=True)
class Cell:
    """A value as it is shown, with its interval beneath where it has one."""

    value: str
    interval: str = ""


@dataclass(frozen=True)
class Row:
    """A line of a table: its name, a note beneath it, and the cells under the columns."""

    name: str
    note: str
    cells: list[Cell]
    strong: bool = False


@dataclass(frozen=True)
class Group:
    """Rows measured on the same tokens."""

    name: str
    rows: list[Row] = field(default_factory=list)


@dataclass(frozen=True)
class Sentence:
    """What is said, and the numbers that it rests on."""

    lead: str
    rest: str


def result_table(measured: Measurements) -> list[Group]:
    """Two groups: what ran on every test token, and what is compared on the control tokens."""
    routing, timing, exits = measured.routing, measured.timing, measured.exits
    routed = _cells(
        routing,
        time=Cell(percent(timing.wall_saving), _range(timing.wall_saving_interval, percent)),
        flops_interval=routing.interval.flop_saving,
        ppl_interval=routing.interval.ppl,
        accuracy_interval=routing.interval.accuracy,
    )
    everything = Group(f"all {routing.tokens:,} test tokens", [Row("routed", "", routed, strong=True)])
    full = _cells(routing.controls.full, time=Cell(percent(0.0)))
    everything.rows.append(Row("full depth", "nothing leaves", full))
    for index, depth in enumerate(routing.controls.fixed):
        everything.rows.append(Row(exit_name(index, exits), "everything leaves here", _cells(depth)))
    same = Group(f"{routing.control_tokens:,} control tokens, equal exit fractions")
    signal = _cells(routing.controls.signal)
    for name, control in CONTROLS.items():
        same.rows.append(Row(control.label, control.note, _cells(routing.controls.named(name))))
        if name == RANDOM:  # between the floor and the ceilings
            same.rows.append(Row("this signal", "same thresholds as routed", signal, strong=True))
    return [everything, same]


def sentences(measured: Measurements) -> list[Sentence]:
    """Quality, chance, oracles and savings, each stated as its numbers have it."""
    return [
        _quality(measured),
        _against_chance(measured.routing),
        _against_oracles(measured.routing),
        *_ranking(measured.routing),
        *_promise(measured.routing),
        *_allowed(measured.routing),
        _savings(measured),
    ]


def standing(routing: Routing) -> str:
    """Where the signal stands between floor and attainable ceiling, in one line, for the top of the page."""
    controls = routing.controls
    low, signal, high = (row.ppl for row in (controls.random, controls.signal, controls.divergence_oracle))
    attained = "" if routing.attained is None else f": {percent(routing.attained)} of the way"
    return (
        f"Perplexity with as many early exits, on {routing.control_tokens:,} control tokens: "
        f"{perplexity(low)} at random (the floor), {perplexity(signal)} by this signal, {perplexity(high)} "
        f"by the divergence oracle (the attainable ceiling){attained}"
    )


def _quality(measured: Measurements) -> Sentence:
    routing = measured.routing
    full, routed = routing.controls.full.ppl, routing.ppl
    lead = "Early exits cost perplexity." if routed > full else "Early exits cost no perplexity."
    interval = _interval(routing.interval.ppl_increase, signed)
    rest = (
        f"It goes from {perplexity(full)} at full depth to {perplexity(routed)} routed: "
        f"{signed(routed / full - 1)}{interval}"
    )
    if routing.controls.fixed:
        shallow = perplexity(routing.controls.fixed[0].ppl)
        rest += f"; sending every token out at exit 0 gives {shallow}"
    agreement = f"Predictions agree with full depth on {percent(routing.agreement)} of tokens."
    return Sentence(lead, f"{rest}. {agreement}")


def _against_chance(routing: Routing) -> Sentence:
    if _nothing_to_choose(routing):
        share = "No token" if routing.shallow_ratio == 0 else "Every token"
        rest = f"{share} leaves early at this threshold, so any signal would do the same."
        return Sentence("There is no choice to judge.", rest)
    bounds = routing.interval.random_minus_signal_nll
    if bounds is None:
        rest = f"{Routing.path} has no interval for random minus signal NLL."
        return Sentence("Not compared with random exits.", rest)
    low, high = bounds
    signal, random = perplexity(routing.controls.signal.ppl), perplexity(routing.controls.random.ppl)
    numbers = (
        f"perplexity {signal} against {random} at equal exit fractions on the control tokens; "
        f"random minus signal in nats per token: 95% interval {nats(low)} to {nats(high)}"
    )
    if low > 0:
        return Sentence("The signal beats random exits:", f"{numbers}, above 0.")
    if high < 0:
        return Sentence("The signal is worse than random exits:", f"{numbers}, below 0.")
    return Sentence("The signal is not shown to beat random exits:", f"{numbers}, which includes 0.")


def _against_oracles(routing: Routing) -> Sentence:
    value, bounds = routing.attained, routing.interval.attained
    if value is None:
        alike = _nothing_to_choose(routing)
        why = "one exit takes every token" if alike else "the oracle does no better than random exits here"
        return Sentence("What could be attained is undefined:", f"{why}.")
    scale = (
        "0 is random exits and 100% the divergence oracle, which knows how far full depth's prediction is "
        "from the exit's but not the next token, at the same exit fractions; it is a ceiling if full depth "
        "is calibrated"
    )
    knows = ""
    if routing.headroom is not None:
        share = f"{percent(routing.headroom)}{_interval(routing.interval.headroom, percent)}"
        knows = f" Of the way to the gain oracle, which knows the next token and no signal reaches: {share}."
    if value <= 0:
        rest = f"{percent(value)}{_interval(bounds, percent)}, where {scale}."
        return Sentence("It attains nothing of what a signal can:", f"{rest}{knows}")
    doubt = "; the interval includes 0" if bounds and bounds[0] <= 0 else ""
    lead = f"It attains {percent(value)} of what a signal can{_interval(bounds, percent)}:"
    return Sentence(lead, f"{scale}{doubt}.{knows}")


def _ranking(routing: Routing) -> list[Sentence]:
    """Calibration beside ranking: a score can fit and not tell tokens apart, and the other way round."""
    if routing.auroc is None:
        return []
    rest = (
        f"calibration error {percent(routing.ece)}{_interval(routing.interval.ece, percent)}; AUROC of "
        f'"leaving at exit 0 agrees with full depth" {routing.auroc:.2f} (0.5 is chance), mean disagreement '
        f"over all coverages {percent(routing.aurc)}."
    )
    return [Sentence("Calibration and ranking are two things:", rest)]


def _promise(routing: Routing) -> list[Sentence]:
    risk = routing.risk
    if risk is None:
        return []
    name = risk.measure.replace("_", " ")
    lead = f"The promised risk was {'kept' if risk.kept else 'NOT kept'} on fresh text."
    if not risk.passed:
        lead = "No threshold could be promised, so nothing leaves."
    rest = (
        f"Promised: {name} at most {risk.tolerance:g} with probability {1 - risk.delta:g}, by tokens that "
        f"leave, from {risk.sequences:,} held-out sequences taken as independent ({risk.passed} of "
        f"{risk.tested} candidates passed). What tokens that go on find in place of them (propagation) comes "
        "on top and is not promised. Measured on the test split: "
        f"{nats(risk.test_risk)}{_interval(risk.test_interval, nats)}, of which "
        f"{nats(risk.leavers_risk)}{_interval(risk.leavers_interval, nats)} by tokens that leave and "
        f"{nats(risk.propagation_risk)}{_interval(risk.propagation_interval, nats)} by propagation."
    )
    return [Sentence(lead, rest)]


def _allowed(routing: Routing) -> list[Sentence]:
    return [Sentence(*in_full(routing.quality))] if routing.quality else []


def _savings(measured: Measurements) -> Sentence:
    layers, flops = measured.routing.layer_saving, measured.routing.flop_saving
    timing = measured.timing
    wall, (low, high) = timing.wall_saving, timing.wall_saving_interval
    notes = [
        f"{percent(layers)} of layers, {percent(flops)} of FLOPs, {percent(wall)} of time "
        f"(95% interval {percent(low)} to {percent(high)})."
    ]
    if layers - flops > AGREE:
        cause = "readouts, confidence and keys/values remain"
        notes.append(f"FLOPs are {points(layers - flops)} behind layers: {cause}.")
    if flops - layers > AGREE:
        notes.append(f"FLOPs are {points(flops - layers)} ahead of layers.")
    if flops - wall > AGREE:
        notes.append(f"The clock is {points(flops - wall)} behind the FLOPs.")
    if wall - flops > AGREE:
        notes.append(f"The clock is {points(wall - flops)} ahead of the FLOPs.")
    if timing.skipping_saving > high:
        asking = "the difference is what asking takes."
    else:
        asking = "what asking takes is too little to be seen in these timings."
    skipping = percent(timing.skipping_saving)
    notes.append(f"Skipping alone, exits known beforehand, saves {skipping} of the time; {asking}")
    if low <= 0 <= high:
        notes.append("The interval holds 0: no change in time is shown.")
    if high < 0:
        lead = "Routing is slower than full depth."
    elif max(layers, flops, wall) - min(layers, flops, wall) <= AGREE:
        lead = f"The three savings agree within {100 * AGREE:.0f} points."
    else:
        lead = "The three savings do not agree."
    return Sentence(lead, " ".join(notes))


def _nothing_to_choose(routing: Routing) -> bool:
    """True if one exit takes every token: then random exits and oracles are the same as the signal."""
    return max(routing.exit_fraction.values()) == 1


def _cells(
    row: Quality,
    *,
    time: Cell | None = None,
    ppl_interval: Interval | None = None,
    accuracy_interval: Interval | None = None,
    flops_interval: Interval | None = None,
) -> list[Cell]:
    """A row's cells under COLUMNS; a dash where it has no such measure."""
    dash = Cell("\N{EN DASH}")
    saved = [dash, dash]
    if isinstance(row, FixedDepth | RoutedMeasures):
        flops = Cell(percent(row.flop_saving), _range(flops_interval, percent))
        saved = [Cell(percent(row.layer_saving)), flops]
    return [
        Cell(perplexity(row.ppl), _range(ppl_interval, perplexity)),
        Cell(percent(row.accuracy), _range(accuracy_interval, percent)),
        Cell(percent(row.agreement)),
        Cell(percent(row.shallow_ratio)),
        *saved,
        time or dash,
    ]


def _range(bounds: Sequence[float] | None, form: Callable[[float], str]) -> str:
    return f"{form(bounds[0])} to {form(bounds[1])}" if bounds else ""


def _interval(bounds: Interval | None, form: Callable[[float], str]) -> str:
    return f" (95% interval {_range(bounds, form)})" if bounds else ""
