"""Run all benchmarks, or those named, and print them with the seconds that each took.

Their rows replace those of the same name in metrics/benchmarks.json, from which `make docs` writes the tables
of docs/benchmarks.md. A quick look writes nothing there, so that the file holds no rows of few repetitions.
"""

from __future__ import annotations

import argparse
import importlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from offramp.results.benchmarks import PATH, Benchmark, read_benchmarks, write_benchmarks

NAMES = (
    "quality",
    "default_run",
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
QUICK_NAMES = (
    "default_run",
    "routing",
    "collect",
    "statistics",
    "exit_training",
    "thresholds_sweep",
    "key_values",
    "start_up",
)
"""What a quick look runs, within ten minutes: nothing that trains a model or starts the pipeline."""
MOST_MINUTES = 90
"""For all of them on two idle cores, with the default run and SmolLM2 there already."""
COLOURS = {"met": "[green]", "missed": "[red]", "not established": "[yellow]"}
OUT = Path(PATH)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"from {', '.join(NAMES)}; default: all")
    parser.add_argument(
        "--threads", type=int, default=2, help="CPU threads; one is steadier on a busy machine"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"few repetitions, nothing written; default: {', '.join(QUICK_NAMES)}",
    )
    arguments = parser.parse_args()
    from rich.console import Console  # none of it is waited for where only help is wanted
    from rich.table import Table

    from benchmarks import measure
    from offramp.machine.device import setup

    setup("cpu", arguments.threads)  # as every stage does
    measure.QUICK = arguments.quick
    console, table = Console(), Table("benchmark", "value", "unit", "bar", "verdict", "n", expand=True)
    for record in records(arguments.names, arguments.quick, console.print):
        if not arguments.quick:
            save(record)
        sure = "" if record.interval is None else " [dim]({:.3g} to {:.3g})".format(*record.interval)
        verdict = f"{COLOURS[record.verdict]}{record.verdict}" if record.verdict else ""
        table.add_row(
            record.name, f"{record.value:.3g}{sure}", record.unit, record.bar or "", verdict, str(record.n)
        )
        table.add_row(f"  [dim]{record.held_against}", end_section=True)
    console.print(table)


def records(names: Sequence[str], quick: bool, say: Callable[[str], object]) -> Iterator[Benchmark]:
    """The rows of the benchmarks ``names``, of all where none is named, as they are measured; their minutes.

    ``say`` is told which one runs, how long it took, and why one was skipped.
    """
    from benchmarks.measure import Row, Skipped

    begun, skipped = time.perf_counter(), []
    for name in names or (QUICK_NAMES if quick else NAMES):
        say(f"{name} ...")
        start = time.perf_counter()
        try:
            for row in importlib.import_module(f"benchmarks.{name}").run():
                yield row.record()
        except Skipped as reason:
            say(f"{name} skipped: {reason}")
            skipped.append(name)
            continue
        took = time.perf_counter() - start
        say(f"{name}: {took:.0f} s")
        yield Row(f"minutes_of_{name}", took / 60, "minutes", None, f"`python -m benchmarks {name}`").record()
    minutes = (time.perf_counter() - begun) / 60
    say(f"all of them: {minutes:.1f} minutes")
    if not names and not quick and not skipped:
        held = "`make bench`: all benchmarks one after the other, the trainings of `quality` among them"
        yield Row("minutes_of_all", minutes, "minutes", f"<= {MOST_MINUTES}", held).record()


def save(record: Benchmark) -> None:
    """Replace the row of that name, at once: an interrupted run keeps what it has measured."""
    rows = read_benchmarks(OUT) if OUT.exists() else {}
    write_benchmarks(OUT, (rows | {record.name: record}).values())


if __name__ == "__main__":
    main()
