"""Bootstrap over documents: tokens of one text depend on each other, so the document is what is resampled."""

from __future__ import annotations

import numpy as np


class DocumentSums:
    """Per-document sums of per-token quantities, from which resampled token means follow without the tokens."""

    def __init__(self, documents: np.ndarray, values: dict[str, np.ndarray]):
        """documents (N,) labels; values: named arrays (N,)."""
        _, place = np.unique(documents, return_inverse=True)
        self.tokens = np.bincount(place).astype(np.float64)
        self.sums = {name: np.bincount(place, weights=column) for name, column in values.items()}

    @property
    def documents(self) -> int:
        return len(self.tokens)

    def resample(self, draws: int, seed: int) -> dict[str, np.ndarray]:
        """Token means (draws,) of every quantity under ``draws`` resamples of documents; the same draws for all (paired)."""
        count = len(self.tokens)
        times = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)
        total = times @ self.tokens
        return {name: times @ sums / total for name, sums in self.sums.items()}


def interval(draws: np.ndarray, level: float = 0.95) -> list[float] | None:
    """Percentile interval [low, high] of bootstrap draws; None where it is not defined or no document varies."""
    finite = draws[np.isfinite(draws)]
    if not len(finite) or np.ptp(finite) == 0:
        return None
    return [float(bound) for bound in np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])]
