"""Thresholds searched by running them on held-out text.

Candidates lie on a path on which more and more tokens leave (``routing.thresholds.threshold_path``). The path
is made of what every exit says as if no token had left. What leavers change in the tokens after them shows
only when a candidate is executed, so the furthest one that stays within a limit is searched by executing a
few.

Shapes: K exits, N tokens, C candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from offramp.corpus.windows import TokenWindows
from offramp.routing.executor import Executor, Policy
from offramp.routing.split import FirstBlock, RoutedSplit, run_split
from offramp.routing.thresholds import exits_taken


@dataclass(frozen=True)
class Text:
    """Windows of a split, and who runs them."""

    executor: Executor
    windows: TokenWindows
    chosen: Tensor
    """Numbers of the windows."""
    batch_size: int

    def of(self, chosen: Tensor) -> Text:
        """Other windows of the split."""
        return replace(self, chosen=chosen)

    def run(self, policy: Policy, name: str = "evaluate", first: FirstBlock | None = None) -> RoutedSplit:
        """Route all of them; ``name`` is what the progress bar says, ``first`` as of ``run_split``."""
        return run_split(
            self.executor,
            self.windows,
            self.chosen,
            policy=policy,
            batch_size=self.batch_size,
            name=name,
            first=first,
        )


def predicted_losses(
    confidence: np.ndarray, loss: np.ndarray, may_leave: np.ndarray, path: Sequence[list[float]]
) -> np.ndarray:
    """The mean loss (C,) of every candidate as if no token had left before.

    confidence (K-1, N), loss (K, N), and bool (N,): tokens that may not leave count at full depth.
    """
    last, means = len(loss) - 1, []
    for thresholds in path:
        taken = np.where(may_leave, exits_taken(confidence, thresholds), last)
        means.append(np.take_along_axis(loss, taken[None], axis=0)[0].mean(dtype=np.float64))
    return np.array(means)


def furthest(
    predicted: np.ndarray, limit: float, within: Callable[[int], bool], probes: int | None = None
) -> int:
    """The furthest candidate that is ``within`` the limit, by bisection.

    It is looked for among those up to the last one whose ``predicted`` loss (C,) is at most ``limit``; as far
    as losses rise along the path, none behind it stays within the limit. ``within`` runs a candidate and says
    whether it does; ``probes`` are the most that are run (None: as many as bisection takes). Every candidate
    that is returned was run and is within, but for 0, where nobody leaves: it is the end where no other is.
    """
    low, high = 0, int(np.append(np.flatnonzero(predicted <= limit), 0).max())
    run = 0
    while low < high and (probes is None or run < probes):
        middle, run = (low + high + 1) // 2, run + 1
        low, high = (middle, high) if within(middle) else (low, middle - 1)
    return low
