"""A thousand thresholds from cached confidences, against applying one threshold after the other."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.measure import Median, Row, in_turn, median_ratio
from offramp.routing.thresholds import exits_taken, sweep

TOKENS, EXITS, THRESHOLDS, PAIRS = 1_000_000, 3, 1_000, 9
NAIVE = 20
"""Thresholds the loop is timed on; its time grows in proportion to their number."""


def one_by_one(confidence: np.ndarray, values: dict[str, np.ndarray], thresholds: np.ndarray) -> None:
    """Exit shares and means of ``values`` (K, N) under each threshold, one pass over all tokens for each."""
    for threshold in thresholds:
        exits = exits_taken(confidence, [threshold] * (EXITS - 1))
        np.bincount(exits, minlength=EXITS)
        for value in values.values():
            np.take_along_axis(value, exits[None], axis=0).mean(dtype=np.float64)


def run() -> Iterator[Row]:
    generator = np.random.default_rng(0)
    confidence = generator.random((EXITS - 1, TOKENS), dtype=np.float32)
    values = {
        "loss": generator.random((EXITS, TOKENS), dtype=np.float32),
        "agreement": generator.random((EXITS, TOKENS), dtype=np.float32) < 0.9,
    }
    thresholds, few = np.linspace(0, 1, THRESHOLDS), np.linspace(0, 1, NAIVE)
    times, loop = in_turn(
        lambda: sweep(confidence, values, thresholds), lambda: one_by_one(confidence, values, few), PAIRS
    )
    work = (
        f"{THRESHOLDS} thresholds, {TOKENS} tokens, {EXITS} exits: exit shares, mean loss and mean agreement"
    )
    yield Row("threshold_sweep", Median.of(times), "s", "<= 2", work)
    yield Row(
        "threshold_sweep_speed",
        median_ratio([t * THRESHOLDS / NAIVE for t in loop], times),
        "x speed",
        None,
        f"one threshold after the other, timed on {NAIVE} of them and scaled; {work}",
    )
