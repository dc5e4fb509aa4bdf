"""What stages need as the corpus grows."""

from __future__ import annotations

from typing import ClassVar

from offramp.results.shape import MetricsFile, Record


class StageCost(Record):
    """One stage on a corpus of one size."""

    stage: str
    corpus_tokens: int
    tokens: int
    """That the stage works on: of the whole corpus, or of the splits that it reads."""
    seconds: float
    cpu_seconds: float
    """Of all threads; a busy machine stretches them less than the clock's."""
    memory_gb: float
    """Resident memory at its peak, libraries included."""


class Growth(MetricsFile):
    """One run of ``python -m benchmarks.growth``."""

    path: ClassVar[str] = "metrics/growth.json"

    machine: str
    commit: str
    date: str
    costs: list[StageCost]
