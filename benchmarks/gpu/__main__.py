"""Check a CUDA device in five minutes, and write what was found to metrics/gpu.json.

Without such a device nothing is run or written, and the exit code is 0. It is 1 where a check does not hold
or was not reached in time.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from benchmarks.gpu.checks import CHECKS, Failed, precision_of
from benchmarks.gpu.speed import GIB, Size, rows
from benchmarks.measure import ROOT
from offramp.machine.device import setup
from offramp.results.benchmarks import Benchmark
from offramp.results.gpu import GpuCheck, GpuRun
from offramp.tracking.git import last_commit

MOST_SECONDS = 270
"""After these no further part is begun: the whole stays below five minutes."""

Check = Callable[[torch.device, Path], str]


def main() -> int:
    if not torch.cuda.is_available():
        print("gpu-check: torch finds no CUDA device here, so nothing was checked and nothing written")
        return 0
    device = setup("cuda", 2)
    begun = time.monotonic()
    machine = in_words(device)
    print(machine)
    checks = run_checks(device, CHECKS, begun)
    measured: list[Benchmark] = []
    checks.append(run_check("speed", lambda: measure(device, machine, begun, measured), begun))
    seconds = time.monotonic() - begun
    commit = last_commit(ROOT)
    result = GpuRun(
        machine=machine, commit=commit and commit.hash, seconds=seconds, checks=checks, rows=measured
    )
    result.write(ROOT)
    print(f"{GpuRun.path} written after {seconds:.0f} s")
    return 0 if result.passed else 1


def run_checks(device: torch.device, checks: Sequence[Check], begun: float) -> list[GpuCheck]:
    """The checks in turn, each in a folder of its own."""
    out = []
    for check in checks:
        with tempfile.TemporaryDirectory() as folder:
            out.append(run_check(check.__name__, lambda: check(device, Path(folder)), begun))  # noqa: B023
    return out


def run_check(name: str, check: Callable[[], str], begun: float) -> GpuCheck:
    """What became of one check: whatever it raises is its detail, and the next one is run."""
    started = time.monotonic()
    passed: bool | None
    if started - begun > MOST_SECONDS:
        passed, detail = None, "not run: the time was up"
    else:
        try:
            passed, detail = True, check()
        except Exception as error:
            passed, detail = False, f"{type(error).__name__}: {error}"
    word = {True: "ok", False: "FAILED", None: "not run"}[passed]
    seconds = time.monotonic() - started
    print(f"{word:8} {name} ({seconds:.0f} s): {detail}", flush=True)
    return GpuCheck(name=name, passed=passed, seconds=seconds, detail=detail)


def measure(device: torch.device, machine: str, begun: float, out: list[Benchmark]) -> str:
    """Append all rows of speed and memory to ``out``, as far as the time allows; says how many they are."""
    precision = precision_of(device)
    size = Size.filling(torch.cuda.get_device_properties(device).total_memory)
    for row in rows(device, size, precision):
        out.append(row.record().model_copy(update={"machine": machine}))
        print(f"         {row.name}: {row.value:.3g} {row.unit}", flush=True)
        if time.monotonic() - begun > MOST_SECONDS:
            raise Failed(f"the time was up after {len(out)} rows")
    return f"{len(out)} rows; scoring in {precision}"


def in_words(device: torch.device) -> str:
    """The device, its memory and versions; nothing that identifies a host."""
    about = torch.cuda.get_device_properties(device)
    return (
        f"{about.name}, {about.total_memory / GIB:.0f} GiB, compute capability {about.major}.{about.minor}, "
        f"torch {torch.__version__}, CUDA {torch.version.cuda}"
    )


if __name__ == "__main__":
    sys.exit(main())
