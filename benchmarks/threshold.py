"""How long one more threshold takes: ``dvc exp run -S threshold=...`` in a copy of a checkout that has run.

The first one in the copy is not measured: DVC reads every artifact there once, since it knows files by their
place on the disk.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.measure import ROOT, Row, Skipped, seconds
from benchmarks.projects import environment

NEW = ("0.6321", "0.7321")


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

        rerun(NEW[0])
        took = seconds(lambda: rerun(NEW[1]))
        ran = [line.split("'")[1] for line in output[1].splitlines() if line.startswith("Running stage")]
    yield Row(
        "threshold_rerun",
        took,
        "s",
        "<= 25",
        f"one run, default data and model; stages run: {', '.join(ran)}",
        1,
    )
