"""What ``make gpu-check`` finds on a machine with a GPU."""

from __future__ import annotations

from typing import ClassVar

from offramp.results.benchmarks import Benchmark
from offramp.results.shape import MetricsFile, Record


class GpuCheck(Record):
    """One thing that must hold on the device."""

    name: str
    passed: bool | None
    """null where it was not run: the time was up."""
    seconds: float
    detail: str
    """What was compared and how near it came, or what went wrong."""


class GpuRun(MetricsFile):
    """One run of all checks and measurements on one machine."""

    path: ClassVar[str] = "metrics/gpu.json"

    machine: str
    """Device, its memory, versions of torch and CUDA."""
    commit: str | None
    """Of the code; null where git knows none."""
    seconds: float
    checks: list[GpuCheck]
    rows: list[Benchmark]

    @property
    def passed(self) -> bool:
        """Whether everything was run and held."""
        return all(check.passed for check in self.checks)
