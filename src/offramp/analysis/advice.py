"""Whether to use early exit, said in a sentence: rules over what ``analysis.suitability`` found, and its table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.table import Table

from offramp.analysis.oracle import ALLOWED_RISE, BOUNDS
from offramp.routing.break_even import KINDS

WORTH = 0.1
"""Share of the FLOPs that an oracle must save for early exit to be worth anything: signals reach a part of it."""
USABLE = 1.0
"""Nats by which an exit that was never trained may be worse than full depth and still be of use."""
SPOILT = 0.1
"""Nats per token that state propagation may cost when half of the tokens have left."""


@dataclass(frozen=True)
class Advice:
    verdict: str
    """no | train the exits first | not on this machine | worth a try"""
    sentence: str


def advise(found: dict[str, Any]) -> Advice:
    """The first of these that applies, on the exits' own readouts where training gave them any.

    Leaving *pays* at an exit, for a kind of signal, if more tokens agree with full depth there (all of them would be let go by a
    perfect signal) than its break-even share.

    1. train the exits first: they are raw, and at each of them the NLL is more than USABLE nats above full depth's, or leaving
       pays in FLOPs at none, or the oracle saves less than WORTH of the FLOPs at ALLOWED_RISE more perplexity;
    2. no: that oracle saves less than WORTH;
    3. no: leaving pays in FLOPs at no exit;
    4. not on this machine: it does, but by the clock at none;
    5. worth a try: it pays by the clock at some exit, for signals of both kinds or of one.
    """
    kind = "tuned" if "tuned" in found["oracle"] else "raw"
    *early, full = rows(found)
    saving = found["oracle"][kind]["small_rise"]["flop_saving"]
    oracle = f"an oracle that knows every loss saves {percent(saving)} of the FLOPs at {ALLOWED_RISE:.0%} more perplexity"
    nearest = min(early, key=lambda row: row["readouts"][kind]["nll"])
    excess = nearest["readouts"][kind]["nll"] - full["readouts"][kind]["nll"]
    in_flops, by_clock = (
        {signal for signal in KINDS if any(_pays(row, kind, signal, unit) for row in early)}
        for unit in ("flops", "seconds")
    )
    if kind == "raw" and (excess > USABLE or not in_flops or saving < WORTH):
        agreeing = percent(nearest["readouts"][kind]["agreement"])
        return Advice(
            "train the exits first",
            (
                f"Not before the exits are trained: read out raw, the best of them (exit {nearest['exit']}, after layer {nearest['layers']} of "
                f"{full['layers']}) is {excess:.2f} nats worse than full depth and agrees with it on {agreeing} of the tokens; {oracle}."
            ),
        )
    if saving < WORTH:
        return Advice("no", f"No: even {oracle}.")
    if not in_flops:
        return Advice("no", f"No, asking costs more than leaving brings back: {_at_best_exit(found, kind)}.")
    if not by_clock:
        return Advice(
            "not on this machine", f"Not on this machine, though {oracle}: {_at_best_exit(found, kind)}."
        )
    which = {
        ("state",): ", with a signal that looks at the state and reads nothing out",
        ("readout",): ", with a signal of the readout",
    }.get(tuple(by_clock), "")
    return Advice("worth a try", f"Worth a try{which}: {oracle}; {_at_best_exit(found, kind)}.")


def propagation(found: dict[str, Any]) -> str:
    """What later tokens lose by tokens that left, in a sentence, and what to set where it is more than SPOILT nats."""
    every, kept = (
        found["state_propagation"]["propagate"][f"keep_first_{count}"]["nll_rise"] for count in (0, 1)
    )
    said = (
        f"When random tokens leave, half of them, propagated keys and values cost {every:.3f} nats per token"
    )
    if every <= SPOILT:
        return f"{said}."
    if kept <= every / 2:
        return f"{said}, {kept:.3f} if the first of a sequence stays: set routing.keep_first: 1{'' if kept <= SPOILT else ', or routing.kv: recompute'}."
    return f"{said}, and {kept:.3f} if the first of a sequence stays: set routing.kv: recompute."


def rows(found: dict[str, Any]) -> list[dict[str, Any]]:
    """What was found of every exit, in their order."""
    return sorted(found["exits"].values(), key=lambda row: row["exit"])


def table(found: dict[str, Any]) -> Table:
    """What ``assess`` found, for a person to read; intervals below the values."""
    kinds, timing = list(found["oracle"]), found["timing"]
    bounds = "; ".join(
        " / ".join(percent(found["oracle"][kind][name]["flop_saving"]) for kind in kinds) + f" {kept}"
        for name, kept in BOUNDS.items()
    )
    out = Table(
        title=f"{found['model']}: {found['tokens']:,} tokens in {found['sequences']:,} windows of {found['window']}",
        caption=f"FLOPs saved by an oracle ({' / '.join(kinds)}): {bounds}.\nRaw: the last readout on the earlier state; tuned: the exit's own. "
        "Below: 95 % over windows.\nBreak-even: share of tokens that must leave before asking pays, in FLOPs / by the clock, for a signal of the "
        f"state and one of the readout;\n{timing['rounds']} batches of {timing['tokens']:,} tokens in turn on {timing['machine']}.",
    )
    headings = (
        "exit",
        "after layer",
        "FLOPs saved",
        *(f"{name} {kind}" for name in ("agreement", "NLL") for kind in kinds),
        "break-even state",
        "break-even readout",
    )
    for heading in headings:
        out.add_column(heading, justify="right")
    for row in rows(found):
        read = [_cell(row["readouts"][kind], name) for name in ("agreement", "nll") for kind in kinds]
        asked = [
            " / ".join(_share(row["break_even"][kind][unit]) for unit in ("flops", "seconds"))
            for kind in KINDS
            if "break_even" in row
        ]
        out.add_row(str(row["exit"]), str(row["layers"]), percent(row["flop_saving"]), *read, *asked)
    return out


def percent(share: float) -> str:
    return f"{share:.0%}" if abs(share) >= 0.0995 or share == 0 else f"{share:.1%}"


def _pays(row: dict[str, Any], kind: str, signal: str, unit: str) -> bool:
    share = row["break_even"][signal][unit]
    return share is not None and share < row["readouts"][kind]["agreement"]


def _at_best_exit(found: dict[str, Any], kind: str) -> str:
    """What may leave, and what must, at the exit where leaving all tokens that agree saves most FLOPs."""
    *early, full = rows(found)
    best = max(early, key=lambda row: row["readouts"][kind]["agreement"] * row["flop_saving"])
    flops, seconds = (_least(best, unit) for unit in ("flops", "seconds"))
    return (
        f"at exit {best['exit']}, after layer {best['layers']} of {full['layers']}, {percent(best['readouts'][kind]['agreement'])} of the "
        f"tokens already have their final prediction; for asking to pay, {flops} must leave there by the count of FLOPs, {seconds} by the clock"
    )


def _least(row: dict[str, Any], unit: str) -> str:
    """The smaller break-even share of an exit, over kinds of signal."""
    shares = [share for signal in KINDS if (share := row["break_even"][signal][unit]) is not None]
    return percent(min(shares)) if shares else "more than all of them"


def _share(value: float | None) -> str:
    return "never" if value is None else percent(value)


def _cell(quality: dict[str, Any], name: str) -> str:
    bounds = quality[f"{name}_interval"]
    return f"{quality[name]:.3f}" + (f"\n{bounds[0]:.3f} {bounds[1]:.3f}" if bounds else "")
