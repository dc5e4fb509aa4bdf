"""How long commands take that need no torch, each in a process of its own: help, parameters, a lineage.

Also how long stages that run with every new threshold take to import what they need.

Every run of a command is one repetition, after one that is not measured.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Sequence

from benchmarks.measure import ROOT, Median, Row, Skipped, cpu_seconds, rounds, seconds
from benchmarks.projects import environment

RUNS = 9
COMMANDS = (
    "lineage",
    "track",
    "separation",
    "low-rank",
    "generate",
    "suitability",
    "convert",
    "params",
    "ui",
)
OFFRAMP = "from offramp.app.cli import main; raise SystemExit(main())"


def run() -> Iterator[Row]:
    if not (ROOT / "routed/manifest.json").exists():
        raise Skipped("a lineage needs results in this checkout; run `make repro` first")
    yield row("start_help", [offramp("--help")], "<= 0.5", "`offramp --help`")
    yield row(
        "start_help_of_commands",
        [offramp(command, "--help") for command in COMMANDS],
        "<= 1",
        f"`offramp COMMAND --help`, {len(COMMANDS)} commands in turn",
    )
    yield row("start_params", [offramp("params")], "<= 1", "`offramp params`: the whole schema")
    yield row("start_lineage", [offramp("lineage")], "<= 2", "`offramp lineage`, default data and model")
    for stage in ("check", "report"):
        held = f"`import pipeline.{stage}`, beside what it then does"
        yield row(f"start_{stage}", [python(f"import pipeline.{stage}")], "<= 1", held)


def offramp(*arguments: str) -> list[str]:
    """The ``offramp`` command with this Python and this checkout's code."""
    return [*python(OFFRAMP), *arguments]


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def row(name: str, commands: Sequence[Sequence[str]], bar: str, what: str) -> Row:
    """The seconds of a command; of several, one after another in every run, those of the slowest."""
    for command in commands:
        once(command)
    before = cpu_seconds()
    runs = [max(seconds(lambda: once(command)) for command in commands) for _ in range(rounds(RUNS))]  # noqa: B023
    spent = (cpu_seconds() - before) / len(runs) / len(commands)
    held = f"{what}; CPU seconds of a run: {spent:.2f}, slowest run {max(runs):.2f} s"
    return Row(name, Median.of(runs), "s", bar, f"{held}, fastest {min(runs):.2f} s")


def once(command: Sequence[str]) -> None:
    """Run a command in the project; RuntimeError where it fails."""
    done = subprocess.run(command, cwd=ROOT, env=environment(ROOT), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[2:])} failed:\n{(done.stdout + done.stderr)[-2000:]}")
