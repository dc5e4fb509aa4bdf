"""Rules that say in a sentence whether to use early exit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from offramp.analysis.oracle import ALLOWED_RISE, RISES, readout_in_use
from offramp.results.suitability import (
    LEAST_SQUARES,
    Advice,
    ExitWorth,
    OracleBounds,
    StatePropagation,
)
from offramp.vocabulary import LOOKS_AT, RAW, READOUT, STATE

WORTH = 0.05
"""Least share of the FLOPs by which the attainable saving must exceed that of random exits.

Signals get most of it. On the default run (237,952 test tokens, asking not counted) the learned classifier
saves .11 of the FLOPs at 1 % more perplexity, where .16 are attainable and random exits save .03: three
fifths of the lead (at 5 %, .34 where .38 and .16: four fifths). Of a lead of .05 it would bring home .03, and
asking it costs .013; the rest is no more than the half-width of ``wall_saving``'s interval, .02. Less than
that nobody would notice.
"""
USABLE = 1.0
"""Nats by which an exit that was never trained may be worse than full depth and still be of use."""
TRAINING = " What can change that is training the model for its exits (pretrain.method: joint)."
"""Said of a model that was not trained for exits, where leaving is not worth it even with fitted ones."""
SPOILT = 0.1
"""Nats per token that state propagation may cost when half of the tokens have left."""


def advise(
    exits: Sequence[ExitWorth], oracle: Mapping[str, OracleBounds], state_propagation: StatePropagation
) -> Advice:
    """What to do with ``exits``, which are in order of depth.

    ``oracle`` has the bounds by the kind of readout: one or more of ``results.suitability.READOUTS``.
    """
    verdict, sentence = verdict_on(exits, oracle)
    return Advice(verdict=verdict, sentence=sentence, propagation=propagation(state_propagation))


def verdict_on(exits: Sequence[ExitWorth], oracle: Mapping[str, OracleBounds]) -> tuple[str, str]:
    """The first of these verdicts that applies, and why.

    It goes by the exits' own readouts where training gave them any, else by those of least squares where
    these were fitted, and by the *lead*: what the divergence oracle saves of the FLOPs, at ALLOWED_RISE more
    perplexity, beyond what random exits save, with its 95 % interval. The lead is *too small* where the
    interval's upper end is below WORTH, and large enough where its lower end is not. Leaving *pays* at an
    exit, for a kind of signal, if more tokens can leave there
    (``can_leave``) than its break-even share.

    1. train the exits first: they are raw, and at each of them the NLL is more than USABLE nats above full
       depth's, or leaving pays in FLOPs at none, or the lead is too small;
    2. no: the lead is too small;
    3. no: leaving pays in FLOPs at no exit;
    4. not on this machine: it does, but by the clock at none;
    5. undecided: the interval of the lead holds WORTH;
    6. worth a try: leaving pays by the clock at some exit, for signals of both kinds or of one.

    Where the exits are of least squares, "no" is about the model as it is: it was not trained for them.
    """
    kind = readout_in_use(oracle)
    *early, full = exits
    attainable = oracle[kind].attainable.rise_1
    low, high = attainable.lead_interval or [attainable.lead] * 2
    bound = _bound(oracle[kind])
    nearest = min(early, key=lambda row: row.readouts[kind].nll)
    excess = nearest.readouts[kind].nll - full.readouts[kind].nll
    in_flops = {signal for signal in LOOKS_AT if any(_pays(row, kind, row.flops(signal)) for row in early)}
    by_clock = {signal for signal in LOOKS_AT if any(_pays(row, kind, row.seconds(signal)) for row in early)}
    if kind == RAW and (excess > USABLE or not in_flops or high < WORTH):
        return (
            "train the exits first",
            f"Not before the exits are trained: read out raw, the best of them (exit {nearest.exit}, after "
            f"layer {nearest.layers} of {full.layers}) is {excess:.2f} nats worse than full depth and agrees "
            f"with it on {percent(nearest.readouts[kind].agreement)} of the tokens; {bound}.",
        )
    as_it_is, remedy = ("", "")
    if kind == LEAST_SQUARES:
        as_it_is, remedy = ", not as it is", TRAINING
    if high < WORTH:
        why = ""
        if attainable.flop_saving >= WORTH:
            why = ", choosing who leaves brings next to nothing over leaving it to chance"
        return "no", f"No{as_it_is}{why}: {bound}.{remedy}"
    at_best_exit = _at_best_exit(exits, kind)
    if not in_flops:
        costs = "asking costs more than leaving brings back"
        return "no", f"No{as_it_is}, {costs}: {at_best_exit}; {bound}.{remedy}"
    if not by_clock:
        return "not on this machine", f"Not on this machine, though {bound}: {at_best_exit}."
    if low < WORTH:
        return (
            "undecided",
            f"Undecided, measure on more tokens: {bound}; over random exits that is a lead of {percent(low)} "
            f"to {percent(high)}, and {percent(WORTH)} would be worth it.",
        )
    which = ""
    if by_clock == {STATE}:
        which = ", with a signal that looks at the state and reads nothing out"
    elif by_clock == {READOUT}:
        which = ", with a signal of the readout"
    return "worth a try", f"Worth a try{which}: {bound}; {at_best_exit}."


def propagation(cost: StatePropagation) -> str:
    """What later tokens lose by tokens that left, in a sentence.

    It names the setting that helps where the loss is more than SPOILT nats.
    """
    every, kept = cost.propagate.keep_first_0.nll_rise, cost.propagate.keep_first_1.nll_rise
    loss = (
        f"When random tokens leave, half of them, propagated keys and values cost {every:.3f} nats per token"
    )
    if every <= SPOILT:
        return f"{loss}."
    if kept <= every / 2:
        more = "" if kept <= SPOILT else ", or routing.kv: recompute"
        return f"{loss}, {kept:.3f} if the first of a sequence stays: set routing.keep_first: 1{more}."
    return f"{loss}, and {kept:.3f} if the first of a sequence stays: set routing.kv: recompute."


def percent(share: float) -> str:
    """A share in per cent, with a decimal where it is below ten."""
    return f"{share:.0%}" if abs(share) >= 0.0995 or share == 0 else f"{share:.1%}"


def _bound(oracle: OracleBounds) -> str:
    """What is attainable, with floor and gain oracle."""
    at = {RISES[name]: getattr(oracle.attainable, name) for name in RISES}
    least = at.pop(ALLOWED_RISE)
    low_high = " [{}, {}]".format(*map(percent, least.interval)) if least.interval else ""
    more = " and ".join(f"{percent(bound.flop_saving)} at {rise:.0%}" for rise, bound in at.items())
    return (
        f"attainable (divergence oracle, if full depth is calibrated) is a saving of "
        f"{percent(least.flop_saving)}{low_high} of the FLOPs "
        f"at {ALLOWED_RISE:.0%} more perplexity, {more}; at {ALLOWED_RISE:.0%} random exits save "
        f"{percent(least.random_saving)}, and one who knows the next token (gain oracle) could save "
        f"{percent(oracle.gain.small_rise.flop_saving)}, which no signal can"
    )


def _pays(row: ExitWorth, kind: str, break_even: float | None) -> bool:
    leaving = row.readouts[kind].can_leave
    return break_even is not None and leaving is not None and break_even < leaving


def _at_best_exit(exits: Sequence[ExitWorth], kind: str) -> str:
    """What can leave, and what must, at the exit where leaving as many as can saves most FLOPs."""
    *early, full = exits
    leaving = {row.exit: row.readouts[kind].can_leave or 0.0 for row in early}
    best = max(early, key=lambda row: leaving[row.exit] * row.flop_saving)
    flops, seconds = _least(map(best.flops, LOOKS_AT)), _least(map(best.seconds, LOOKS_AT))
    return (
        f"at exit {best.exit}, after layer {best.layers} of {full.layers}, {percent(leaving[best.exit])} of "
        f"the tokens can leave at {ALLOWED_RISE:.0%} more perplexity; for asking to pay, {flops} must leave "
        f"there by the count of FLOPs, {seconds} by the clock"
    )


def _least(shares: Iterable[float | None]) -> str:
    """The smallest of an exit's break-even shares."""
    possible = [share for share in shares if share is not None]
    return percent(min(possible)) if possible else "more than all of them"
