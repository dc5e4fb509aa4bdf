"""The pipeline on SmolLM2 with the overrides of docs/checkpoints.md: minutes, and the memory of its largest
process.

It runs as that page says it, in a new clone with an empty cache, so that every stage runs. Joint training of
all weights, which it mentions beside it, runs for a few steps in the same clone for its memory alone.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.inputs import SMOLLM2
from benchmarks.measure import ROOT, Row, Skipped
from benchmarks.projects import FOLDER, cloned, environment, set_params

PAGE = "docs/checkpoints.md"
OVERRIDES = "dvc exp run -S model.source=hf "
JOINT = {
    "pretrain.method": "joint",
    "pretrain.gradient_checkpointing": True,
    "pretrain.frozen.tokens": 4096,
    "pretrain.steps": 4,
    "pretrain.evaluate_every": 2,
    "pretrain.evaluate_windows": 2,
}
"""After the first step Adam has both its moments, and the second look may keep other weights."""

MEASURED = """
import resource, subprocess, sys
failed = subprocess.run(sys.argv[1:], stdout=2).returncode
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
sys.exit(failed != 0)
"""
"""Starts a command and tells the memory (KiB) of the largest process below it.

The program is small itself, for Linux counts a parent's memory as its child's.
"""


def documented() -> list[str]:
    """The command of docs/checkpoints.md, split into words. LookupError where it has none."""
    text = (ROOT / PAGE).read_text(encoding="utf-8")
    _, overrides, rest = text.partition(OVERRIDES)
    if not overrides:
        raise LookupError(f"{PAGE} has no command that begins with {OVERRIDES!r}")
    return shlex.split((overrides + rest.partition("```")[0]).replace("\\\n", " "))


def run() -> Iterator[Row]:
    if not (SMOLLM2 / "config.json").exists():
        raise Skipped("there is no checkpoint in build/smollm2; run `make smollm2`")
    shutil.rmtree(FOLDER / "smollm2", ignore_errors=True)
    clone = cloned("smollm2")
    (clone / "build").mkdir()
    (clone / "build/smollm2").symlink_to(SMOLLM2)
    seconds, most = used(clone, documented())
    held = "every stage of the documented run on SmolLM2, nothing cached"
    yield Row("smollm2_pipeline", seconds / 60, "minutes", "<= 30", held, 1)
    yield Row("smollm2_memory", most, "GB", "<= 3", f"{held}: the largest process", 1)
    set_params(clone / "params.yaml", JOINT)
    _, most = used(clone, ["python", "-m", "pipeline.pretrain"])
    yield Row(
        "smollm2_joint_memory",
        most,
        "GB",
        "<= 3",
        "pretraining all weights jointly in fp32 with gradient checkpointing, 8 windows of 256 tokens a step",
        1,
    )


def used(folder: Path, command: Sequence[str]) -> tuple[float, float]:
    """Seconds of a command in a checkout, and the memory (GB) of the largest of its processes and theirs.

    RuntimeError with what it printed last where it fails.
    """
    if sys.platform != "linux":
        raise Skipped("the memory of processes is read as Linux tells it")
    log = folder / ".dvc/output.txt"
    with log.open("w", encoding="utf-8") as output:
        start = time.perf_counter()
        process = subprocess.run(
            [sys.executable, "-c", MEASURED, *command],
            cwd=folder,
            env=environment(folder),
            stdout=subprocess.PIPE,
            stderr=output,
        )
        seconds = time.perf_counter() - start
    if process.returncode:
        raise RuntimeError(f"{shlex.join(command[:3])} failed:\n{log.read_text(encoding='utf-8')[-2000:]}")
    return seconds, int(process.stdout) * 1024 / 1e9
