"""Rules that say in a sentence whether to use early exit: by FLOPs, and what the clock shows beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from offramp.analysis.oracle import ALLOWED_RISE, RISES, readout_in_use
from offramp.results.suitability import (
    LEAST_SQUARES,
    Advice,
    ExitWorth,
    OracleBounds,
    StatePropagation,
)
from offramp.vocabulary import RAW, READOUT, STATE

WORTH = 0.05
"""Least share of the FLOPs by which the attainable saving must exceed that of random exits.

Signals get most of it. On the default run (237,952 test tokens, asking not counted) the learned classifier
saves .11 of the FLOPs at 1 % more perplexity, where .16 are attainable and random exits save .03: three
fifths of the lead (at 5 %, .34 where .38 and .16: four fifths). Of a lead of .05 it would bring home .03, and
asking it costs .013; the rest is no more than the half-width of ``wall_saving``'s interval, .02. Less than
that nobody would notice.
"""
LITTLE = 0.0005
"""A share that is written as nothing."""
USABLE = 1.0
"""Nats by which an exit that was never trained may be worse than full depth and still be of use."""
TRAINING = " What can change that is training the model for its exits (pretrain.method: joint)."
"""Said of a model that was not trained for exits, where leaving is not worth it even with fitted ones."""
SIGNAL = {STATE: "a classifier of the state", READOUT: "a signal that reads out"}
"""What a signal is called that looks at the one or the other."""
SPOILT = 0.1
"""Nats per token that state propagation may cost when half of the tokens have left."""


def advise(
    exits: Sequence[ExitWorth],
    oracle: Mapping[str, OracleBounds],
    state_propagation: StatePropagation,
    looks_at: str,
) -> Advice:
    """What to do with ``exits``, which are in order of depth.

    ``oracle`` has the bounds by the kind of readout: one or more of ``results.suitability.READOUTS``.
    ``looks_at`` says what the signal looks at whose asking is weighed.
    """
    verdict, sentence = verdict_on(exits, oracle, looks_at)
    return Advice(
        verdict=verdict,
        sentence=sentence,
        clock=by_the_clock(exits, oracle, looks_at),
        propagation=propagation(state_propagation),
    )


def verdict_on(
    exits: Sequence[ExitWorth], oracle: Mapping[str, OracleBounds], looks_at: str
) -> tuple[str, str]:
    """The first of these verdicts that applies, and why.

    It goes by the exits' own readouts where training gave them any, else by those of least squares where
    these were fitted, and by the *lead*: what the divergence oracle saves of the FLOPs, at ALLOWED_RISE more
    perplexity, beyond what random exits save, with its 95 % interval. The lead is *too small* where the
    interval's upper end is below WORTH, and large enough where its lower end is not. Leaving *pays* at an
    exit if more tokens can leave there (``can_leave``) than its break-even share. All of this counts FLOPs.
    Seconds have no part in it, so that the same model and text get the same verdict each time, on any
    machine; ``by_the_clock`` says what they show.

    1. train the exits first: they are raw, and at each of them the NLL is more than USABLE nats above full
       depth's, or leaving pays at none, or the lead is too small;
    2. no: the lead is too small;
    3. no: leaving pays at no exit;
    4. undecided: the interval of the lead holds WORTH;
    5. worth a try: leaving pays at some exit.

    Where the exits are of least squares, "no" is about the model as it is: it was not trained for them.
    """
    kind = readout_in_use(oracle)
    *early, full = exits
    attainable = oracle[kind].attainable.rise_1
    low, high = attainable.lead_interval or [attainable.lead] * 2
    bound = _bound(oracle[kind])
    nearest = min(early, key=lambda row: row.readouts[kind].nll)
    excess = nearest.readouts[kind].nll - full.readouts[kind].nll
    pays = any(_pays(row, kind) for row in early)
    if kind == RAW and (excess > USABLE or not pays or high < WORTH):
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
            lead = attainable.lead
            adds = f"{percent(lead)} of the FLOPs" if lead >= LITTLE else "nothing"
            why = f", choosing who leaves adds {adds} to what chance saves, and {percent(WORTH)} are worth it"
        return "no", f"No{as_it_is}{why}: {bound}.{remedy}"
    at_best_exit = _at_best_exit(exits, kind, looks_at)
    if not pays:
        costs = "asking costs more than leaving brings back"
        return "no", f"No{as_it_is}, {costs}: {at_best_exit}; {bound}.{remedy}"
    if low < WORTH:
        return (
            "undecided",
            f"Undecided, measure on more tokens: {bound}; over random exits that is a lead of {percent(low)} "
            f"to {percent(high)}, and {percent(WORTH)} would be worth it.",
        )
    return "worth a try", f"Worth a try: {bound}; {at_best_exit}."


def by_the_clock(exits: Sequence[ExitWorth], oracle: Mapping[str, OracleBounds], looks_at: str) -> str:
    """What this machine's clock says of asking the same signal at the same exit, in a sentence."""
    best = _best_exit(exits, readout_in_use(oracle))
    asked = best.break_even
    assert asked is not None, "the best exit is an early one"
    if asked.clock == "never":
        return (
            f"By the clock on this machine, leaving at exit {best.exit} takes longer than it saves when "
            f"{SIGNAL[looks_at]} is asked."
        )
    if asked.clock == "inconclusive" or asked.seconds is None:
        cost = "of too few batches to tell what asking costs"
        if asked.asking_interval:
            low, high = map(percent, asked.asking_interval)
            cost = f"asking {SIGNAL[looks_at]} at exit {best.exit} takes {low} to {high} of a plain pass more"
        return f"By the clock on this machine: timing inconclusive, {cost}."
    between = " [{}, {}]".format(*map(percent, asked.seconds_interval)) if asked.seconds_interval else ""
    return (
        f"By the clock on this machine, {percent(asked.seconds)}{between} of the tokens must leave at exit "
        f"{best.exit} for asking {SIGNAL[looks_at]} to pay."
    )


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
        f"attainable (divergence oracle, if full depth is calibrated) is a saving of at most "
        f"{percent(least.flop_saving)}{low_high} of the FLOPs "
        f"at {ALLOWED_RISE:.0%} more perplexity, {more}; at {ALLOWED_RISE:.0%} random exits save "
        f"{percent(least.random_saving)}, and one who knows the next token (gain oracle) could save "
        f"{percent(oracle.gain.small_rise.flop_saving)}, which no signal can"
    )


def _pays(row: ExitWorth, kind: str) -> bool:
    """Whether more tokens can leave than must, both by the count of FLOPs."""
    leaving, must = row.readouts[kind].can_leave, row.break_even.flops if row.break_even else None
    return must is not None and leaving is not None and must < leaving


def _best_exit(exits: Sequence[ExitWorth], kind: str) -> ExitWorth:
    """The exit where leaving as many as can saves most FLOPs."""
    return max(exits[:-1], key=lambda row: (row.readouts[kind].can_leave or 0.0) * row.flop_saving)


def _at_best_exit(exits: Sequence[ExitWorth], kind: str, looks_at: str) -> str:
    """What can leave, and what must, at that exit."""
    best = _best_exit(exits, kind)
    flops = best.break_even.flops if best.break_even else None
    must = "more than all of them" if flops is None else percent(flops)
    return (
        f"at exit {best.exit}, after layer {best.layers} of {exits[-1].layers}, "
        f"{percent(best.readouts[kind].can_leave or 0.0)} of the tokens can leave at {ALLOWED_RISE:.0%} more "
        f"perplexity, and asking {SIGNAL[looks_at]} pays, by the count of FLOPs, where {must} do"
    )
