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

    def added_bytes(self, stage: str) -> float:
        """Bytes of memory that a stage adds per token it works on, between the two largest corpora.

        ValueError with fewer than two corpora.
        """
        costs = sorted((cost for cost in self.costs if cost.stage == stage), key=lambda cost: cost.tokens)
        if len(costs) < 2:
            raise ValueError(f"{self.path} has {len(costs)} corpora for stage {stage}; growth needs two")
        before, after = costs[-2:]
        return 1e9 * (after.memory_gb - before.memory_gb) / (after.tokens - before.tokens)
