"""The documented run of the pipeline on SmolLM2: minutes, memory of its largest process, quality of exits.

It runs in a new clone with an empty cache, so that every stage runs, as docs/checkpoints.md tells it; the
command stands in ``commands``, for both. Joint training of all weights, which it mentions beside it, runs for
a few steps in the same clone for its memory alone. A run takes a quarter of an hour, so there is one of it,
and none of its rows has an interval but what its test documents give.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.commands import SMOLLM2_RUN
from benchmarks.inputs import SMOLLM2
from benchmarks.measure import DRAWS, FEWEST, Estimate, Row, Skipped
from benchmarks.projects import FOLDER, cloned, environment, set_params
from offramp.artifacts.artifact import open_artifact
from offramp.states.resampling import GroupSums
from offramp.states.store import States

EXITS = {10: 150, 20: 75}
"""Layers after which its exits stand, and the perplexity that each is held to."""
JOINT: dict[str, Any] = {
    "pretrain.method": "joint",
    "pretrain.gradient_checkpointing": True,
    "pretrain.frozen.tokens": 4096,
    "pretrain.batch_size": 8,
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


def run() -> Iterator[Row]:
    if not (SMOLLM2 / "config.json").exists():
        raise Skipped("there is no checkpoint in build/smollm2; run `make smollm2`")
    shutil.rmtree(FOLDER / "smollm2", ignore_errors=True)
    clone = cloned("smollm2")
    (clone / "build").mkdir()
    (clone / "build/smollm2").symlink_to(SMOLLM2)
    seconds, most = used(clone, words())
    held = "every stage of the documented run on SmolLM2, nothing cached; one run"
    yield Row("smollm2_pipeline", seconds / 60, "minutes", "<= 15", held)
    yield Row("smollm2_memory", most, "GB", "<= 1.8", f"{held}: the largest process")
    yield from exit_rows(States(open_artifact(clone / "states/test", "states", verify=False)))
    set_params(clone / "params.yaml", JOINT)
    _, most = used(clone, ["python", "-m", "pipeline.pretrain"])
    yield Row(
        "smollm2_joint_memory",
        most,
        "GB",
        "<= 3",
        "pretraining all weights jointly in fp32 with gradient checkpointing, "
        f"{JOINT['pretrain.batch_size']} windows of 256 tokens a step; one run",
    )


def words() -> list[str]:
    """The documented command, split as a shell does."""
    return shlex.split(SMOLLM2_RUN.replace("\\\n", " "))


def exit_rows(states: States) -> Iterator[Row]:
    """Test perplexity of every exit before the last; with enough documents, an interval over these."""
    losses = {exit: states.column(f"loss_{exit}") for exit in range(states.num_exits)}
    sums = GroupSums(states.column("document"), losses)
    documents, draws = len(sums.tokens), sums.resample(DRAWS, 0)
    for exit, (layers, most) in enumerate(EXITS.items()):
        ppl, full = (float(np.exp(losses[of].mean(dtype=np.float64))) for of in (exit, states.num_exits - 1))
        yield Row(
            f"smollm2_exit_{layers}_ppl",
            Estimate.drawn(ppl, np.exp(draws[exit]), documents)
            if documents >= FEWEST
            else Estimate.within(ppl, None, documents),
            "perplexity",
            f"<= {most}",
            f"everybody leaving after {layers} of 30 layers in the documented run, {len(losses[exit])} test "
            f"tokens of {documents} documents; full depth {full:.1f}",
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
