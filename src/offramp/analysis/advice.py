"""Rules that say in a sentence whether to use early exit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from offramp.analysis.oracle import ALLOWED_RISE, readout_in_use
from offramp.results.suitability import (
    Advice,
    ExitWorth,
    OracleBounds,
    StatePropagation,
)
from offramp.vocabulary import LOOKS_AT, RAW, READOUT, STATE

WORTH = 0.1
"""Least share of the FLOPs that an oracle must save: signals reach a part of it."""
USABLE = 1.0
"""Nats by which an exit that was never trained may be worse than full depth and still be of use."""
SPOILT = 0.1
"""Nats per token that state propagation may cost when half of the tokens have left."""


def advise(
    exits: Sequence[ExitWorth], oracle: Mapping[str, OracleBounds], state_propagation: StatePropagation
) -> Advice:
    """What to do with ``exits``, which are in order of depth.

    ``oracle`` has the bounds by the kind of readout: raw, tuned or both.
    """
    verdict, sentence = verdict_on(exits, oracle)
    return Advice(verdict=verdict, sentence=sentence, propagation=propagation(state_propagation))


def verdict_on(exits: Sequence[ExitWorth], oracle: Mapping[str, OracleBounds]) -> tuple[str, str]:
    """The first of these verdicts that applies, and why.

    It goes by the exits' own readouts where training gave them any. Leaving *pays* at an exit, for a kind of
    signal, if more tokens agree with full depth there (all of them would be let go by a perfect signal) than
    its break-even share.

    1. train the exits first: they are raw, and at each of them the NLL is more than USABLE nats above full
       depth's, or leaving pays in FLOPs at none, or the oracle saves less than WORTH of the FLOPs at
       ALLOWED_RISE more perplexity;
    2. no: that oracle saves less than WORTH;
    3. no: leaving pays in FLOPs at no exit;
    4. not on this machine: it does, but by the clock at none;
    5. worth a try: it pays by the clock at some exit, for signals of both kinds or of one.
    """
    kind = readout_in_use(oracle)
    *early, full = exits
    saving = oracle[kind].small_rise.flop_saving
    bound = (
        f"an oracle that knows every loss saves {percent(saving)} of the FLOPs "
        f"at {ALLOWED_RISE:.0%} more perplexity"
    )
    nearest = min(early, key=lambda row: row.readouts[kind].nll)
    excess = nearest.readouts[kind].nll - full.readouts[kind].nll
    in_flops = {signal for signal in LOOKS_AT if any(_pays(row, kind, row.flops(signal)) for row in early)}
    by_clock = {signal for signal in LOOKS_AT if any(_pays(row, kind, row.seconds(signal)) for row in early)}
    if kind == RAW and (excess > USABLE or not in_flops or saving < WORTH):
        return (
            "train the exits first",
            f"Not before the exits are trained: read out raw, the best of them (exit {nearest.exit}, after "
            f"layer {nearest.layers} of {full.layers}) is {excess:.2f} nats worse than full depth and agrees "
            f"with it on {percent(nearest.readouts[kind].agreement)} of the tokens; {bound}.",
        )
    if saving < WORTH:
        return "no", f"No: even {bound}."
    at_best_exit = _at_best_exit(exits, kind)
    if not in_flops:
        return "no", f"No, asking costs more than leaving brings back: {at_best_exit}."
    if not by_clock:
        return "not on this machine", f"Not on this machine, though {bound}: {at_best_exit}."
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


def _pays(row: ExitWorth, kind: str, break_even: float | None) -> bool:
    return break_even is not None and break_even < row.readouts[kind].agreement


def _at_best_exit(exits: Sequence[ExitWorth], kind: str) -> str:
    """What may leave, and what must, at the exit where leaving all tokens that agree saves most FLOPs."""
    *early, full = exits
    best = max(early, key=lambda row: row.readouts[kind].agreement * row.flop_saving)
    flops, seconds = _least(map(best.flops, LOOKS_AT)), _least(map(best.seconds, LOOKS_AT))
    return (
        f"at exit {best.exit}, after layer {best.layers} of {full.layers}, "
        f"{percent(best.readouts[kind].agreement)} of the tokens already have their final prediction; for "
        f"asking to pay, {flops} must leave there by the count of FLOPs, {seconds} by the clock"
    )


def _least(shares: Iterable[float | None]) -> str:
    """The smallest of an exit's break-even shares."""
    possible = [share for share in shares if share is not None]
    return percent(min(possible)) if possible else "more than all of them"
