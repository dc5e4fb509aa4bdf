"""How long one more threshold takes: ``dvc exp run -S threshold=...`` in a copy of a checkout that has run.

The first one in the copy is not measured: DVC reads every artifact there once, since it knows files by their
place on the disk. Every further threshold is one repetition. Its seconds are told apart by what DVC prints: a
stage's are those from its beginning to the next one's, and what remains is DVC's own.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.measure import ROOT, Median, Row, Skipped, cpu_seconds, seconds
from benchmarks.projects import environment

DVC = "dvc"
BEGINS = re.compile(r"Running stage '(?P<stage>\w+)'|Updating lock file|Ran experiment")
"""Lines of DVC: a stage begins, or its own work after one that ran."""
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
        timelines: list[dict[str, float]] = []

        def rerun(threshold: str) -> None:
            command = [sys.executable, "-m", "dvc", "exp", "run", "-S", f"threshold={threshold}"]
            timelines.append(timeline(command, copy))

        rerun(FIRST)
        before = cpu_seconds()
        took = [seconds(lambda: rerun(threshold)) for threshold in NEW]  # noqa: B023
        spent = (cpu_seconds() - before) / len(NEW)
    measured = timelines[1:]
    ran = [part for part in measured[0] if part != DVC]
    yield Row(
        "threshold_rerun",
        Median.of(took),
        "s",
        "<= 20",
        f"default data and model; stages run: {', '.join(ran)}; {spent:.0f} CPU seconds of a run",
    )
    for part in (DVC, *ran):
        what = "DVC itself, before, between and after stages" if part == DVC else f"stage {part}"
        taken = Median.of([of[part] for of in measured])
        yield Row(f"threshold_rerun_{part}", taken, "s", None, f"{what}, of a new threshold")


def timeline(command: Sequence[str], folder: Path) -> dict[str, float]:
    """Seconds of DVC, and of each stage in its order; RuntimeError with what was said where it fails."""
    parts, part, since, printed = {DVC: 0.0}, DVC, time.monotonic(), []
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment(folder),
        text=True,
        bufsize=1,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        for line in process.stdout or ():
            printed.append(line)
            if begins := BEGINS.match(line):
                now = time.monotonic()
                parts[part] = parts.get(part, 0.0) + now - since
                part, since = begins["stage"] or DVC, now
    parts[part] = parts.get(part, 0.0) + time.monotonic() - since
    if process.returncode:
        raise RuntimeError(f"dvc exp run failed:\n{''.join(printed)[-2000:]}")
    return parts
