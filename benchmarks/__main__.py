"""Run all benchmarks, or those named, and print them.

Their rows replace those of the same name in metrics/benchmarks.json, from which `make docs` writes the tables
of docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from offramp.results.benchmarks import PATH, Benchmark, read_benchmarks, write_benchmarks

NAMES = (
    "quality",
    "routing",
    "decoding",
    "economize_decoding",
    "perplexity",
    "propagation",
    "collect",
    "statistics",
    "exit_training",
    "thresholds_sweep",
    "threshold",
    "start_up",
    "low_rank",
    "blockwise_training",
    "ensemble",
    "context_vectors",
    "key_values",
    "live_tracking",
    "suitability",
    "translators",
    "smollm2",
)
OUT = Path(PATH)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"from {', '.join(NAMES)}; default: all")
    parser.add_argument(
        "--threads", type=int, default=2, help="CPU threads; one is steadier on a busy machine"
    )
    arguments = parser.parse_args()
    from rich.console import Console  # none of it is waited for where only help is wanted
    from rich.table import Table

    from benchmarks.measure import Skipped
    from offramp.machine.device import setup

    setup("cpu", arguments.threads)  # as every stage does
    console, table = Console(), Table("benchmark", "value", "unit", "bar", "met", expand=True)
    for name in arguments.names or NAMES:
        console.print(f"{name} ...")
        try:
            for row in importlib.import_module(f"benchmarks.{name}").run():
                record = row.record()
                save(record)
                met = {True: "yes", False: "[red]no", None: ""}[record.met]
                sure = "" if record.interval is None else " [dim]({:.3g} to {:.3g})".format(*record.interval)
                table.add_row(row.name, f"{row.value:.3g}{sure}", row.unit, row.bar or "", met)
                table.add_row(f"  [dim]{row.held_against}", end_section=True)
        except Skipped as reason:
            console.print(f"{name} skipped: {reason}")
    console.print(table)


def save(record: Benchmark) -> None:
    """Replace the row of that name, at once: an interrupted run keeps what it has measured."""
    rows = read_benchmarks(OUT) if OUT.exists() else {}
    write_benchmarks(OUT, (rows | {record.name: record}).values())


if __name__ == "__main__":
    main()
