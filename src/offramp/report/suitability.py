"""Whether to use early exit at all, as ``metrics/suitability.json`` has it: a row per exit, and what an oracle would save."""

from __future__ import annotations

from math import exp
from typing import Any

from offramp.analysis.oracle import BOUNDS
from offramp.report.findings import Cell, Row, percent, perplexity
from offramp.report.theme import exit_name

SIGNALS = ("state", "readout")
"""What is asked: a classifier of the state, or a readout."""


def columns(found: dict[str, Any]) -> list[str]:
    kinds = list(found["oracle"])
    return [
        "FLOPs saved",
        *(f"{name}, {kind}" for name in ("agreement", "perplexity") for kind in kinds),
        *(f"break-even, {signal}" for signal in SIGNALS),
    ]


def rows(found: dict[str, Any]) -> list[Row]:
    """One row per exit: a break-even cell is the share by FLOPs, with that by the clock beneath."""
    ordered = sorted(found["exits"].values(), key=lambda row: row["exit"])
    return [
        Row(
            exit_name(row["exit"], len(ordered)),
            f"after layer {row['layers']} of {ordered[-1]['layers']}",
            _cells(row, list(found["oracle"])),
        )
        for row in ordered
    ]


def oracle(found: dict[str, Any]) -> str:
    """What an oracle saves, in a sentence; of the tuned readouts where there are any."""
    kind = "tuned" if "tuned" in found["oracle"] else "raw"
    bounds = (
        f"{percent(found['oracle'][kind][name]['flop_saving'])} {kept}" for name, kept in BOUNDS.items()
    )
    return f"An oracle that asks nothing saves of the FLOPs: {'; '.join(bounds)}."


def _cells(row: dict[str, Any], kinds: list[str]) -> list[Cell]:
    cells = [Cell(percent(row["flop_saving"]))]
    for name in ("agreement", "nll"):
        for kind in kinds:
            bounds, form = (
                row["readouts"][kind][f"{name}_interval"],
                percent if name == "agreement" else _from_nats,
            )
            cells.append(
                Cell(
                    form(row["readouts"][kind][name]),
                    f"{form(bounds[0])} to {form(bounds[1])}" if bounds else "",
                )
            )
    if "break_even" not in row:
        return cells + [Cell("\N{EN DASH}")] * len(SIGNALS)
    shares = ([row["break_even"][signal][unit] for unit in ("flops", "seconds")] for signal in SIGNALS)
    return cells + [Cell(_share(flops), f"{_share(seconds)} by the clock") for flops, seconds in shares]


def _from_nats(nll: float) -> str:
    return perplexity(exp(nll))


def _share(value: float | None) -> str:
    return "never" if value is None else percent(value)
