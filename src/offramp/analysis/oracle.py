"""What early exit could save at best: oracles that know every exit's loss and prediction of every token.

They read what each exit says as if no token had left before it, and ask nothing: their savings are bounds for
any signal.

Shapes: K exits, N tokens. ``costs`` (K,) are FLOPs of leaving at each exit as shares of full depth
(``routing.cost.exit_costs``).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from offramp.results.suitability import Bound, OracleBounds
from offramp.vocabulary import RAW, TUNED

ALLOWED_RISE = 0.01
"""Rise in perplexity at which advice is given."""
BOUNDS = {
    "least_loss": "with every token at its exit of least loss",
    "same_ppl": "at the perplexity of full depth",
    "small_rise": f"at {ALLOWED_RISE:.0%} more",
    "same_prediction": "with all predictions those of full depth",
}
"""What each of the ``OracleBounds`` keeps, in words."""
PRECISION = 1e-12
"""Relative width at which the search for a price of FLOPs ends."""


def least_loss(loss: np.ndarray, costs: np.ndarray) -> Bound:
    """Every token at its exit of least loss (K, N), the first of equal ones."""
    return _bound(*_priced(loss, costs, 0.0))


def largest_saving(loss: np.ndarray, costs: np.ndarray, ppl_rise: float = 0.0) -> Bound:
    """The most that can be saved where perplexity rises by at most a share of ``ppl_rise``; loss (K, N).

    Tokens leave in the order of nats lost per FLOP saved: each takes the exit of least loss + price x cost,
    at the price that uses up the rise. One token may be shared between two exits, so this is the optimum of
    the linear relaxation, which no choice of exits exceeds and some choice misses by one token at most.
    """
    limit = loss[-1].mean(dtype=np.float64) + np.log1p(ppl_rise)
    among_cheapest = np.where(costs[:, None] == costs.min(), loss, np.inf)
    cheapest = _means(loss, costs, among_cheapest.argmin(0))
    if cheapest[0] <= limit:
        return _bound(*cheapest)
    kept, low, high = _priced(loss, costs, 0.0), 0.0, 1.0
    over = _priced(loss, costs, high)
    while over[0] <= limit:  # ends: at a high enough price all take the cheapest exit
        kept, low, high = over, high, 2 * high
        over = _priced(loss, costs, high)
    while high - low > PRECISION * high:
        price = (low + high) / 2
        tried = _priced(loss, costs, price)
        if tried[0] <= limit:
            kept, low = tried, price
        else:
            over, high = tried, price
    share = min(1.0, (limit - kept[0]) / (over[0] - kept[0]))
    (nll, cost), (nll_over, cost_over) = kept, over
    return _bound(nll + share * (nll_over - nll), cost + share * (cost_over - cost))


def same_prediction(loss: np.ndarray, argmax: np.ndarray, costs: np.ndarray) -> Bound:
    """Every token at the earliest exit from which on all predictions are full depth's.

    loss and argmax are (K, N).
    """
    return _bound(*_means(loss, costs, settled_at(argmax)))


def bounds(loss: np.ndarray, argmax: np.ndarray, costs: np.ndarray) -> OracleBounds:
    """What every oracle saves; loss and argmax (K, N)."""
    return OracleBounds(
        least_loss=least_loss(loss, costs),
        same_ppl=largest_saving(loss, costs),
        small_rise=largest_saving(loss, costs, ALLOWED_RISE),
        same_prediction=same_prediction(loss, argmax, costs),
    )


def readout_in_use(oracle: Mapping[str, OracleBounds]) -> str:
    """The kind of readout that counts: the exits' own (tuned) where training gave them any, else raw."""
    return TUNED if TUNED in oracle else RAW


def settled_at(argmax: np.ndarray) -> np.ndarray:
    """(N,) the earliest exit from which on every exit's argmax (K, N) is that of full depth."""
    settled = np.logical_and.accumulate((argmax == argmax[-1])[::-1])
    return len(argmax) - settled.sum(0)


def _priced(loss: np.ndarray, costs: np.ndarray, price: float) -> tuple[float, float]:
    """Mean loss and mean cost where every token takes the exit of least loss + price x cost."""
    return _means(loss, costs, np.argmin(loss + price * costs[:, None], axis=0))


def _means(loss: np.ndarray, costs: np.ndarray, exits: np.ndarray) -> tuple[float, float]:
    """Mean loss (nats) and mean cost at the exits taken (N,)."""
    taken = np.take_along_axis(loss, exits[None], axis=0)
    return float(taken.mean(dtype=np.float64)), float(costs[exits].mean())


def _bound(nll: float, cost: float) -> Bound:
    return Bound(flop_saving=1 - cost, ppl=float(np.exp(nll)))
