"""Bootstrap over groups of tokens: tokens of one text depend on each other, so it is resampled whole.

A group is a document, or a sequence or window where documents are too few or unknown.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

import numpy as np

Name = TypeVar("Name", bound=Hashable)


class GroupSums(Generic[Name]):
    """Sums over groups of per-token quantities, from which resampled token means follow."""

    def __init__(self, groups: np.ndarray, values: Mapping[Name, np.ndarray]):
        """groups (N,) says to which group each token belongs; values are named arrays (N,)."""
        _, place = np.unique(groups, return_inverse=True)
        self.tokens = np.bincount(place).astype(np.float64)
        self.sums = {name: np.bincount(place, weights=column) for name, column in values.items()}

    def resample(self, draws: int, seed: int) -> dict[Name, np.ndarray]:
        """Token means (draws,) of every quantity, under the same resamples of groups for all (paired)."""
        times = group_draws(len(self.tokens), draws, seed)
        total = times @ self.tokens
        return {name: times @ sums / total for name, sums in self.sums.items()}


def group_draws(count: int, draws: int, seed: int) -> np.ndarray:
    """How often each of ``count`` groups is in each resample of as many groups: (draws, count)."""
    return np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=draws)


def interval(draws: np.ndarray, level: float = 0.95) -> list[float] | None:
    """Percentile interval [low, high] of bootstrap draws; None where it is not defined or no group varies."""
    finite = draws[np.isfinite(draws)]
    if not len(finite) or np.ptp(finite) == 0:
        return None
    return [float(bound) for bound in np.quantile(finite, [(1 - level) / 2, (1 + level) / 2])]
