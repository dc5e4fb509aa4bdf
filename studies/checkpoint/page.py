"""The results as tables of Markdown, for docs/checkpoint.md."""

from __future__ import annotations

from collections.abc import Sequence

from offramp.analysis.oracle import RISES
from offramp.results.shape import Interval
from studies.checkpoint.results import (
    SPEED_BAR,
    TIMED_RISE,
    ArmResults,
    Attained,
    Clocked,
    Drafted,
    Reached,
    Results,
    first_told,
)

NOT_RUN = "*Not run yet.*"
WORDS = {"rise_1": "1 %", "rise_3": "3 %", "rise_5": "5 %"}
NEXT_RISE = "rise_3"
"""Told where nothing leaves at the timed rise."""


def page(results: Results | None) -> str:
    """Everything that was found on one kind of device; says so where nothing was."""
    if results is None or not results.arms:
        return NOT_RUN
    parts = [
        _head(results),
        f"**The answer.** {answer(results)}",
        _look(results),
        _precision(results),
        _training(results),
        _exits(results),
    ]
    parts += [_ceilings(results), _attained(results), _clock(results), _shares(results)]
    return "\n\n".join(part for part in parts if part)


def _head(results: Results) -> str:
    commits: dict[str, list[str]] = {}
    for arm in results.arms:
        commits.setdefault(arm.measures.commit or "unknown", []).append(arm.name)
    several = len(commits) > 1
    of = [commit + (f" ({', '.join(names)})" if several else "") for commit, names in commits.items()]
    dates = sorted({arm.ran["measure"].ended.split()[0] for arm in results.arms})
    missing = {"final", "joint", "fitted", "frozen", "layerskip", "lora"} - {arm.name for arm in results.arms}
    rest = f" Not run yet: {', '.join(sorted(missing))}." if missing else ""
    measures = results.arms[0].measures
    return (
        f"Measured on {results.machine}, {', '.join(dates)}, commit {', '.join(of)}: {measures.tokens:,} "
        f"test tokens of {measures.documents} documents. Intervals are 95 % bootstrap intervals over these "
        f"documents; by the clock, of the median of pairs.{rest}"
    )


def answer(results: Results | None) -> str:
    """What can be saved at 1 % more perplexity, what the bar would need, and what was attained."""
    arms = [arm for arm in results.arms if arm.measures.attained] if results else []
    if results is None or not arms:
        return NOT_RUN
    control = results.arms[0].measures.exits[-1].ppl
    best = max(arms, key=lambda arm: arm.measures.against_control[TIMED_RISE].flop_saving)
    most = best.measures.against_control[TIMED_RISE]
    asked = 1 - 1 / SPEED_BAR
    if most.reached:
        can = (
            f"a signal that does not know the next token saves at most {_reached(most)} of the FLOPs (the "
            f"arm {best.name}), as far as full depth is calibrated; where seconds follow FLOPs that is "
            f"{1 / (1 - most.flop_saving):.2f}x the speed"
        )
    else:
        can = "nothing can be saved: no arm's full depth stays within it"
    sentences = [f"At {WORDS[TIMED_RISE]} more perplexity than the control's full depth, {can}."]
    if most.flop_saving < asked:
        sentences.append(
            f"The {SPEED_BAR}x that this study set out for need {asked:.0%}, which no such signal reaches "
            "with these exits."
        )
    for arm in arms:
        if not arm.measures.against_control[TIMED_RISE].reached:
            lost = arm.measures.exits[-1].ppl / control - 1
            own = arm.measures.against_itself[TIMED_RISE]
            sentences.append(
                f"The full depth of {arm.name} alone has {lost:.1%} more than the control's; held against "
                f"itself {_reached(own)} can be saved."
            )
    return " ".join([*sentences, *_attained_in_words(arms)])


def _attained_in_words(arms: Sequence[ArmResults]) -> list[str]:
    """Sentences on the arm that is told first: what its signals saved at 1 %, by the clock, and at 3 %."""
    arm = first_told(arms)
    if arm is None or arm.measures.chosen is None or arm.measures.decoding is None:
        return []
    chosen, decoding = arm.measures.chosen, arm.measures.decoding
    speed = (
        f"by the clock decoding has {_with(decoding.speed, decoding.interval, '.2f')} times the control's "
        f"speed ({decoding.pairs} pairs, the arm {arm.name})"
    )
    if chosen.shallow_ratio > 0:
        return [f"Attained is {_saved(chosen)}; {speed}."]
    sentences = [f"No thresholds were found on calibration text at which anything leaves; {speed}."]
    kept = [
        row
        for row in arm.measures.attained
        if row.rise == NEXT_RISE and row.calibration_rise <= RISES[NEXT_RISE]
    ]
    most = max(kept, key=lambda row: row.calibration_saving, default=None)
    if most is not None and most.shallow_ratio > 0:
        ceiling = _reached(arm.measures.against_control[NEXT_RISE])
        sentences.append(
            f"At {WORDS[NEXT_RISE]}, where {ceiling} are attainable, attained is {_saved(most)}."
        )
    return sentences


def _saved(row: Attained) -> str:
    return (
        f"{_with(row.flop_saving, row.interval, '.1%')} of the FLOPs by {row.signal}, at "
        f"{_with(row.ppl_rise, row.rise_interval, '+.1%')} perplexity on test text"
    )


def _look(results: Results) -> str:
    look = results.look
    rows = [
        [
            str(exit["layers"]),
            f"{exit['ppl']:.1f}",
            f"{exit['agreement']:.2f}",
            *(f"{exit['attainable'][rise]:.1%}" for rise in WORDS),
        ]
        for exit in look["exits"]
    ]
    head = [
        "exit after layer",
        "perplexity",
        "agreement",
        *(f"attainable at {rise}" for rise in WORDS.values()),
    ]
    best = next(one for one in look["savings"] if one["exits_after"] == look["chosen"])
    return (
        f"**Which exits.** The checkpoint as it is, read out by least squares, on {look['tokens']:,} tokens "
        f"of calibration text where full depth has perplexity {look['ppl']:.1f}; attainable is what the "
        f"divergence oracle saves of the FLOPs with that exit alone:\n\n{_table(head, rows)}\n\n"
        f"Chosen: exits after {_listed(look['chosen'])} layers, which together make most attainable "
        f"({', '.join(f'{best[rise]:.1%}' for rise in WORDS)})."
    )


def _precision(results: Results) -> str:
    rates = results.precision["tokens_per_second"]
    listed = ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items())
    return (
        f"**Which precision.** Tokens per second of joint training, median of "
        f"{len(next(iter(results.precision['seconds'].values())))} steps: {listed}. Arms train in "
        f"{results.precision['chosen']}."
    )


def _training(results: Results) -> str:
    rows = []
    for arm in results.arms:
        ran = arm.ran["pretrain"]
        hours = "resumed" if ran.resumed else f"{ran.seconds / 60:.0f} min"
        rows.append(
            [
                arm.name,
                arm.says,
                f"{arm.trained_tokens:,}",
                f"{arm.best_step} of {arm.steps}",
                hours,
                f"{ran.memory_gb:.1f} GB",
            ]
        )
    return "**Arms.**\n\n" + _table(["arm", "is", "tokens trained on", "best step", "took", "memory"], rows)


def _exits(results: Results) -> str:
    layers = [exit.layers for exit in results.arms[0].measures.exits]
    rows = [
        [arm.name, *(_with(exit.ppl, exit.ppl_interval, ".1f") for exit in arm.measures.exits)]
        for arm in results.arms
    ]
    return (
        "**Perplexity** where all tokens leave at an exit (those of the control are read out raw: they were "
        f"never trained):\n\n{_table(['arm', *(f'after {count} layers' for count in layers)], rows)}"
    )


def _ceilings(results: Results) -> str:
    rows = [
        [
            arm.name,
            *(_reached(arm.measures.against_control[rise]) for rise in WORDS),
            *(_reached(arm.measures.against_itself[rise]) for rise in WORDS),
        ]
        for arm in results.arms
        if arm.measures.attained
    ]
    head = ["arm", *(f"{rise} over the control" for rise in WORDS.values())]
    head += [f"{rise} over itself" for rise in WORDS.values()]
    return (
        "**Attainable**: share of the FLOPs that the divergence oracle saves at so much more perplexity than "
        "the control's full depth (what the arm's own full depth has lost against it is taken off first), "
        f"and than the arm's own:\n\n{_table(head, rows)}"
    )


def _attained(results: Results) -> str:
    rows = [
        [arm.name, row.signal, WORDS[row.rise], *_of(row)]
        for arm in results.arms
        for row in arm.measures.attained
    ]
    head = ["arm", "signal", "allowed", "FLOPs saved", "executed", "perplexity over the control's", "leave"]
    return (
        "**Attained**: what signals save on test text by thresholds that calibration text chose, where "
        "candidates were executed; asking is counted, which for all but `learned` and `saturation` is a "
        "readout of every token at every exit, and is paid where nothing leaves, too:\n\n"
        f"{_table(head, rows)}"
    )


def _of(row: Attained) -> list[str]:
    return [
        _with(row.flop_saving, row.interval, ".1%"),
        _number(row.executed_saving, ".1%"),
        _with(row.ppl_rise, row.rise_interval, "+.1%"),
        f"{row.shallow_ratio:.0%}",
    ]


def _clock(results: Results) -> str:
    rows = [_timed(arm) for arm in results.arms if arm.measures.chosen]
    head = ["arm", "signal", "scoring", "decoding, batch 1", "self-speculation, batch 1", "accepted"]
    return (
        "**By the clock** at the thresholds for 1 %: times the speed of the control's full depth on the same "
        "text (the signal is the one that saves most on calibration text); self-speculation against plain "
        f"decoding of the same model, whose tokens it makes:\n\n{_table(head, rows)}"
    )


def _timed(arm: ArmResults) -> list[str]:
    measures = arm.measures
    assert measures.chosen is not None
    drafted = measures.drafting
    return [
        arm.name,
        measures.chosen.signal,
        _speed(measures.scoring),
        _speed(measures.decoding),
        "" if drafted is None else f"{_with(drafted.speed, drafted.interval, '.2f')} ({drafted.pairs})",
        _accepted(drafted),
    ]


def _accepted(drafted: Drafted | None) -> str:
    if drafted is None:
        return ""
    if not drafted.pays and not drafted.drafted:
        return "drafting was given up while it was tried"
    given_up = "" if drafted.pays else ", then given up"
    return f"{drafted.accepted} of {drafted.drafted}, after {drafted.layers} layers{given_up}"


def _speed(clocked: Clocked | None) -> str:
    return "" if clocked is None else f"{_with(clocked.speed, clocked.interval, '.2f')} ({clocked.pairs})"


def _shares(results: Results) -> str:
    arms = [arm for arm in results.arms if arm.measures.at_shares]
    if not arms:
        return ""
    shares = sorted({row.share for row in arms[0].measures.at_shares if row.share not in (0.0, 1.0)})
    columns = [(arm, share) for arm in arms for share in shares]
    cells = {(arm.name, row.signal, row.share): row for arm in arms for row in arm.measures.at_shares}
    signals = sorted({row.signal for row in arms[0].measures.at_shares if row.attained is not None})
    rows = []
    for signal in signals:
        found = [cells.get((arm.name, signal, share)) for arm, share in columns]
        rows.append(
            [
                signal,
                *(
                    "" if row is None or row.attained is None else _with(row.attained, row.interval, ".2f")
                    for row in found
                ),
            ]
        )
    head = ["signal", *(f"{arm.name}, {share:.0%}" for arm, share in columns)]
    return (
        "**Which signal** attains what where the same share of arriving tokens leaves at every exit: its "
        "share of the way from random exits (0) to the divergence oracle (1). The field's claim, of a frozen "
        f"model with heads tuned by KL, is that entropy is the most reliable (arXiv 2407.21082):\n\n"
        f"{_table(head, rows)}"
    )


def _reached(reached: Reached) -> str:
    return _with(reached.flop_saving, reached.interval, ".1%") if reached.reached else "none"


def _with(value: float, bounds: Interval | None, form: str) -> str:
    interval = "" if bounds is None else f" [{', '.join(_number(edge, form) for edge in bounds)}]"
    return f"{_number(value, form)}{interval}"


def _number(value: float, form: str) -> str:
    """A zero has no sign."""
    text = f"{value:{form}}"
    return text if any(digit in "123456789" for digit in text) else text.lstrip("-+")


def _listed(numbers: Sequence[int]) -> str:
    return " and ".join(map(str, numbers)) if len(numbers) < 3 else ", ".join(map(str, numbers))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
