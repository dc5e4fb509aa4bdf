"""How long `offramp suitability --model` takes to judge SmolLM2, from the shell and back."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from tempfile import TemporaryDirectory

from benchmarks.inputs import SMOLLM2
from benchmarks.measure import ROOT, Median, Row, Skipped, seconds
from benchmarks.projects import environment

RUNS = 5


def run() -> Iterator[Row]:
    if not (SMOLLM2 / "config.json").exists():
        raise Skipped("there is no checkpoint in build/smollm2; run `make smollm2`")
    with TemporaryDirectory() as out:
        taken = [seconds(lambda: judge(out)) for _ in range(RUNS)]
    held = "every quarter of the depth as an exit, default text and budget, start-up included"
    yield Row("suitability_smollm2", Median.of(taken), "s", "<= 180", held)


def judge(out: str) -> None:
    """Run the command as a user would; CalledProcessError where it fails."""
    command = ["suitability", "--model", str(SMOLLM2), "--out", out]
    subprocess.run(
        [sys.executable, "-m", "offramp.app.cli", *command],
        env=environment(ROOT),
        check=True,
        stdout=subprocess.DEVNULL,
    )
