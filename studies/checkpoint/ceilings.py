"""What early exit of one model could save at most while another one's full depth is the reference.

Shapes: K exits, N tokens.
"""

from __future__ import annotations

import numpy as np

from offramp.analysis.oracle import RISES
from offramp.analysis.oracle import Path as Way
from offramp.states.resampling import GroupSums, group_draws, interval
from studies.checkpoint.results import Reached


def attainable_against(
    reference: np.ndarray,
    divergence: np.ndarray,
    loss: np.ndarray,
    costs: np.ndarray,
    groups: np.ndarray,
    draws: int,
) -> dict[str, Reached]:
    """What the divergence oracle saves at each of RISES over the mean loss of ``reference`` (N,).

    divergence and loss (K, N) are the model's own, at its own exits. What a rise leaves to exits is what the
    model's full depth has not used up: log(1 + rise) + mean reference loss - mean full-depth loss. Intervals
    are from ``draws`` resamples of ``groups`` (N,), the same for both models.
    """
    way, allowed = Way.of(divergence, loss, costs), np.log1p(list(RISES.values()))
    spare = reference.astype(np.float64) - loss[-1]
    names, place = np.unique(groups, return_inverse=True)
    spares = GroupSums(groups, {"spare": spare}).resample(draws, 0)["spare"]
    resampled = np.array(
        [
            [
                0.0 if point is None else point.flop_saving
                for point in way.within(allowed + left, times[place])
            ]
            for times, left in zip(group_draws(len(names), draws, 0), spares)
        ]
    )
    points = way.within(allowed + spare.mean())
    return {
        name: Reached(
            flop_saving=0.0 if point is None else point.flop_saving,
            interval=interval(resampled[:, number]),
            reached=point is not None,
        )
        for number, (name, point) in enumerate(zip(RISES, points))
    }
