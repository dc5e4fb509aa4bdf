"""How long one more threshold takes: ``dvc exp run -S threshold=...`` in a copy of a checkout that has run.

The first one in the copy is not measured: DVC reads every artifact there once, since it knows files by their
place on the disk. Every further threshold is one repetition.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import ROOT, Median, Row, Skipped, cpu_seconds, seconds
from benchmarks.projects import environment

FIRST, NEW = "0.6321", ("0.7321", "0.7421", "0.7521", "0.7621", "0.7721")


def run() -> Iterator[Row]:
    if not (ROOT / "dvc.lock").exists() or not (ROOT / "routed/manifest.json").exists():
        raise Skipped("the pipeline has not been run in this checkout; run `make repro` first")
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "checkout"
        shutil.copytree(
            ROOT,
            copy,
            symlinks=True,
            ignore=shutil.ignore_patterns(
                ".venv", ".benchmarks", "mlruns", "mlartifacts", "mlflow.db", "__pycache__"
            ),
        )
        output: list[str] = []

        def rerun(threshold: str) -> None:
            command = [sys.executable, "-m", "dvc", "exp", "run", "-S", f"threshold={threshold}"]
            process = subprocess.run(command, cwd=copy, env=environment(copy), capture_output=True, text=True)
            output.append(process.stdout + process.stderr)
            if process.returncode:
                raise RuntimeError(f"dvc exp run failed:\n{output[-1][-2000:]}")

        rerun(FIRST)
        before = cpu_seconds()
        took = [seconds(lambda: rerun(threshold)) for threshold in NEW]  # noqa: B023
        spent = (cpu_seconds() - before) / len(NEW)
        ran = [line.split("'")[1] for line in output[1].splitlines() if line.startswith("Running stage")]
    yield Row(
        "threshold_rerun",
        Median.of(took),
        "s",
        "<= 20",
        f"default data and model; stages run: {', '.join(ran)}; {spent:.0f} CPU seconds of a run",
    )
