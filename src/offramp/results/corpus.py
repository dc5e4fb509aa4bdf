"""Results of stage prepare."""

from __future__ import annotations

from offramp.results.shape import MetricsFile, Record


class SplitCounts(Record):
    """Size of one split."""

    documents: int
    characters: int
    tokens: int
    windows: int
    unknown_rate: float
    """Share of text tokens (end tokens aside) that are the unknown token."""


class Corpus(MetricsFile):
    """What stage prepare made of the text."""

    path = "metrics/corpus.json"

    vocab_size: int
    window: int
    train: SplitCounts
    calibration: SplitCounts
    test: SplitCounts
