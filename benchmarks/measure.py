"""How the benchmarks measure: the same work side by side in turn, and memory in a process of its own."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from offramp.results.benchmarks import Benchmark, verdict
from offramp.tracking.git import changed_files, last_commit

ROOT = Path(__file__).resolve().parents[1]
MEASURED_CODE = ("src", "benchmarks", "pipeline", "studies/common", "params.yaml", "dvc.yaml")
"""What a benchmark runs: a change of these is a change of what is measured."""
LEVEL, DRAWS = 0.95, 2000
"""Of all intervals, and the resamples behind each."""
FEWEST = 5
"""Repetitions below which there is no interval."""
QUICK = False
"""Whether a quick look is asked for, with fewer repetitions: ``python -m benchmarks --quick`` says so."""


@dataclass(frozen=True)
class Row:
    """One benchmark result, as it stands in metrics/benchmarks.json."""

    name: str
    value: float
    """An ``Estimate`` also says how sure it is; any other number was measured once."""
    unit: str
    bar: str | None
    """``<= x`` or ``>= x``; None for a figure that is only reported."""
    held_against: str

    def record(self) -> Benchmark:
        """The result, what its interval says of the bar, and where, when and of what it was taken."""
        value, interval = float(self.value), getattr(self.value, "interval", None)
        return Benchmark(
            name=self.name,
            value=value,
            unit=self.unit,
            bar=self.bar,
            held_against=self.held_against,
            n=getattr(self.value, "n", 1),
            interval=interval,
            verdict=verdict(value, interval, self.bar),
            machine=machine(),
            commit=commit(),
            date=datetime.now(UTC).date().isoformat(),
        )


class Estimate(float):
    """A value that knows how sure it is."""

    interval: list[float] | None
    """95 %, [low, high]; None where nothing tells."""
    n: int
    """Independent repetitions behind it."""

    @classmethod
    def within(cls, value: float, interval: Sequence[float] | None, n: int) -> Self:
        """The value with an interval that was computed elsewhere."""
        estimate = cls(value)
        estimate.interval = None if interval is None else [float(bound) for bound in interval]
        estimate.n = n
        return estimate

    @classmethod
    def drawn(cls, value: float, draws: np.ndarray, n: int) -> Self:
        """The value with the percentile interval of its bootstrap draws."""
        return cls.within(value, np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist(), n)

    def scaled(self, factor: float) -> Estimate:
        """The value in a smaller or larger unit: it and its interval times a positive ``factor``."""
        bounds = self.interval and [bound * factor for bound in self.interval]
        return Estimate.within(self * factor, bounds, self.n)


class Median(Estimate):
    """The median of independent measurements.

    ``interval`` is that of a percentile bootstrap, None where there are fewer than ``FEWEST`` measurements.
    """

    @classmethod
    def of(cls, values: Iterable[float]) -> Median:
        """The median of (N,) values, one for each repetition."""
        measured = np.array(list(values))
        median = float(np.median(measured))
        if len(measured) < FEWEST:
            return cls.within(median, None, len(measured))
        rows = np.random.default_rng(0).choice(measured, (DRAWS, len(measured)))
        return cls.drawn(median, np.median(rows, axis=1), len(measured))


@cache
def commit() -> str | None:
    """Short hash of the last commit, ``+`` after it where measured code has changed since; None without git.

    It is looked up once, so that all rows of a process have the same.
    """
    last = last_commit(ROOT)
    return None if last is None else last.hash[:7] + ("+" if changed_files(ROOT, *MEASURED_CODE) else "")


class Skipped(Exception):
    """The benchmark cannot run here; the message says why."""


def machine() -> str:
    """The processor, its widest instructions that torch uses, threads, torch's version and the load while
    measuring.

    It holds nothing that identifies a host or a path.
    """
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [
            line.split(":", 1)[1].strip()
            for line in cpuinfo.read_text().splitlines()
            if line.startswith("model name")
        ]
        model = names[0] if names else model
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{platform.system()} {platform.machine()}, {model} ({torch.backends.cpu.get_cpu_capability()}), "
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}{load}"
    )


def seconds(work: Callable[[], Any]) -> float:
    """Seconds that ``work`` takes, by the clock."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def cpu_seconds() -> float:
    """Of the processes that this one started and that have ended: a busy machine stretches them little."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def rounds(wanted: int) -> int:
    """As many as ``wanted``, or the ``FEWEST`` that have an interval where only a quick look is asked for."""
    return min(wanted, FEWEST) if QUICK else wanted


def in_turn(
    first: Callable[[], Any], second: Callable[[], Any], pairs: int
) -> tuple[list[float], list[float]]:
    """Seconds of two pieces of work, in turn and changing who begins, after one unmeasured run of each."""
    first(), second()
    a, b = in_rounds((first, second), pairs)
    return a, b


def in_rounds(works: Sequence[Callable[[], Any]], wanted: int) -> list[list[float]]:
    """Seconds of each piece of work, one list per piece, of as many rounds as ``rounds`` makes of ``wanted``.

    In a round every piece runs once, in every other round in reverse order. The first run of each counts too.
    """
    times: list[list[float]] = [[] for _ in works]
    for number in range(rounds(wanted)):
        for times_of_work, work in list(zip(times, works))[:: 1 if number % 2 else -1]:
            times_of_work.append(seconds(work))
    return times


def median_ratio(numerators: Sequence[float], denominators: Sequence[float]) -> Median:
    """The median of paired ratios. ValueError where there are not as many of the one as of the other."""
    return Median.of(a / b for a, b in zip(numerators, denominators, strict=True))


def added_memory(setup: str, work: str) -> float:
    """MiB by which ``work`` raises the resident memory of a fresh process that has run ``setup``."""
    if not Path("/proc/self/clear_refs").exists():
        raise Skipped("memory is read from /proc, which only Linux has")
    code = f"""
import gc, re, torch
import benchmarks
from offramp.machine.device import setup
setup("cpu", {torch.get_num_threads()})
{setup}
gc.collect()
status = lambda key: int(re.search(key + r":\\s+(\\d+)", open("/proc/self/status").read()).group(1))
open("/proc/self/clear_refs", "w").write("5")  # begin a new high-water mark
before = status("VmRSS")
{work}
print((status("VmHWM") - before) / 1024)
"""
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return float(process.stdout.split()[-1])
