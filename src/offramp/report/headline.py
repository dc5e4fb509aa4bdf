"""The result of a pipeline run as a table to read: routing beside its controls."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROUTING, TIMING = "metrics/routing.json", "metrics/timing.json"


def headline_table(root: Path) -> Table | None:
    """The routed model, its fixed depths and its controls on equal tokens; None before `evaluate` has run."""
    if not (root / ROUTING).is_file():
        return None
    routing = json.loads((root / ROUTING).read_text(encoding="utf-8"))
    timing = json.loads((root / TIMING).read_text(encoding="utf-8")) if (root / TIMING).is_file() else {}
    controls = routing["controls"]
    table = Table(title=_title(routing), title_justify="left", box=None, pad_edge=False, header_style="bold")
    table.add_column("tokens leave by", no_wrap=True)
    for name in ("ppl", "accuracy", "early", "layers saved", "FLOPs saved", "time saved"):
        table.add_column(name, justify="right")
    fixed = sorted(name for name in controls if name.startswith("exit_"))
    table.add_row("full depth", *_cells(controls["full"] | {"shallow_ratio": 0.0}))
    for name in fixed:
        # the last exit is full depth, which has its own row
        if controls[name] != controls["full"]:
            table.add_row(
                f"all at {name.replace('_', ' ')}", *_cells(controls[name] | {"shallow_ratio": 1.0})
            )
    table.add_row(f"confidence ({routing['confidence']})", *_cells(routing | timing), style="bold")
    table.add_row()
    table.add_row(f"[dim]equal shares, {routing['control_tokens']:,} tokens:")
    for name, label in (
        ("random", "chance"),
        ("signal", f"confidence ({routing['confidence']})"),
        ("loss_oracle", "oracle of the loss"),
        ("gain_oracle", "oracle of the gain"),
    ):
        if name in controls:
            table.add_row(label, *_cells(controls[name]), style="bold" if name == "signal" else None)
    return table


def headline_sentence(root: Path) -> str | None:
    """What the table says, in one line; None before `evaluate` has run."""
    if not (root / ROUTING).is_file():
        return None
    routing = json.loads((root / ROUTING).read_text(encoding="utf-8"))
    # undefined where chance and oracle tie, for instance if no token or every token leaves
    headroom = "undefined" if routing["headroom"] is None else f"{routing['headroom']:.2f}"
    increase = routing["ppl"] / routing["controls"]["full"]["ppl"] - 1
    saving = routing["flop_saving"]
    flops = f"{abs(saving):.0%} {'fewer' if saving >= 0 else 'more'} FLOPs"
    return (
        f"{routing['shallow_ratio']:.0%} of the tokens leave early: {flops} than full depth for "
        f"{increase:+.1%} perplexity; headroom {headroom} (0: no better than leaving by chance, 1: the oracle of the gain)."
    )


def print_headline(root: Path) -> None:
    """Print table and sentence; nothing before `evaluate` has run."""
    table = headline_table(root)
    if table is not None:
        console().print("", table, "", headline_sentence(root), "", sep="\n")


def console(stream: Any = None) -> Console:
    """A console on stdout, wide enough for tables where the output is no terminal (DVC's pipe, a log file)."""
    stream = stream or sys.stdout
    return Console(file=stream, width=None if stream.isatty() else 120, highlight=False)


def _title(routing: dict[str, Any]) -> str:
    thresholds = (
        ", ".join(f"{value:.3g}" for value in routing["threshold"].values())
        or f"by price {routing.get('price')}"
    )
    return (
        f"Routing at threshold {thresholds}: {routing['tokens']:,} test tokens "
        f"of {routing['documents']:,} documents"
    )


def _cells(row: dict[str, Any]) -> list[str]:
    def share(name: str) -> str:
        return f"{row[name]:.1%}" if name in row else ""

    ppl = f"{row['ppl']:.2f}"
    if "interval" in row:
        low, high = row["interval"]["ppl"]
        ppl += f" [{low:.2f}, {high:.2f}]"
    seconds = share("wall_saving")
    if seconds and "wall_saving_low" in row:
        seconds += f" [{row['wall_saving_low']:.0%}, {row['wall_saving_high']:.0%}]"
    return [
        ppl,
        f"{row['accuracy']:.3f}",
        *map(share, ("shallow_ratio", "layer_saving", "flop_saving")),
        seconds,
    ]
