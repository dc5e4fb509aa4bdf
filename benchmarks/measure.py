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
from pathlib import Path
from typing import Any

import numpy as np
import torch

from offramp.results.benchmarks import Benchmark
from offramp.states.resampling import interval

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Row:
    """One benchmark result, as it stands in metrics/benchmarks.json."""

    name: str
    value: float
    """A ``Median`` also says how sure it is."""
    unit: str
    bar: str | None
    """``<= x`` or ``>= x``; None for a figure that is only reported."""
    held_against: str
    n: int
    """Pairs of measurements behind the value."""

    def record(self) -> Benchmark:
        """The result with its interval, whether it met the bar, and the machine it was taken on."""
        met = None
        if self.bar:
            relation, bound = self.bar.split()
            met = self.value <= float(bound) if relation == "<=" else self.value >= float(bound)
        return Benchmark(
            name=self.name,
            value=float(self.value),
            unit=self.unit,
            bar=self.bar,
            held_against=self.held_against,
            n=self.n,
            interval=getattr(self.value, "interval", None),
            met=met,
            machine=machine(),
        )


class Median(float):
    """The median of paired measurements.

    ``interval`` is its 95 % percentile bootstrap interval, None where there are fewer than five measurements.
    """

    interval: list[float] | None

    @classmethod
    def of(cls, values: Iterable[float]) -> Median:
        measured = np.array(list(values))
        median = cls(np.median(measured))
        draws = np.median(np.random.default_rng(0).choice(measured, (2000, len(measured))), axis=1)
        median.interval = interval(draws) if len(measured) >= 5 else None
        return median


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


def in_turn(
    first: Callable[[], Any], second: Callable[[], Any], pairs: int
) -> tuple[list[float], list[float]]:
    """Seconds of two pieces of work, in turn and changing who begins, after one unmeasured run of each."""
    first(), second()
    a, b = in_rounds((first, second), pairs)
    return a, b


def in_rounds(works: Sequence[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """Seconds of each piece of work, one list per piece.

    In a round every piece runs once, in every other round in reverse order. The first run of each counts too.
    """
    times: list[list[float]] = [[] for _ in works]
    for number in range(rounds):
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
