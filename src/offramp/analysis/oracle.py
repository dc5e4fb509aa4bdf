"""What early exit could save at best: the divergence oracle, the gain oracle, and random exits as the floor.

The *gain oracle* knows the next token, and so the loss at every exit; no signal can. The *divergence oracle*
knows what depth would change: KL(full || exit) of every token, which is the gain of going on that is to be
expected by one who knows everything but the next token, if full depth is calibrated. What it saves is
*attainable*. *Random exits* know nothing. All read what each exit says as if no token had left before it, and
ask nothing.

Either oracle has a value per token and exit in nats, its loss or its divergence. At a price of FLOPs every
token takes the exit of least value + price x cost: with two exits, tokens leave in the order of their values.
``Path`` is that choice over all prices; the perplexity on it is measured, with the true losses at the exits
taken.

Shapes: K exits, N tokens. ``costs`` (K,) are FLOPs of leaving at each exit as shares of full depth
(``routing.cost.exit_costs``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from offramp.results.suitability import (
    READOUTS,
    Attainable,
    AttainableBounds,
    Bound,
    GainBounds,
    OracleBounds,
)
from offramp.states.resampling import GroupSums, group_draws, interval

RISES = {"rise_1": 0.01, "rise_3": 0.03, "rise_5": 0.05}
"""Rises in perplexity at which the attainable saving is measured, by the names of ``AttainableBounds``."""
ALLOWED_RISE = RISES["rise_1"]
"""Rise in perplexity at which advice is given."""
BOUNDS = {
    "least_loss": "with every token at its exit of least loss",
    "same_ppl": "at the perplexity of full depth",
    "small_rise": f"at {ALLOWED_RISE:.0%} more",
    "same_prediction": "with all predictions those of full depth",
}
"""What each of the ``GainBounds`` keeps, in words."""


class Point(NamedTuple):
    """A place on a path."""

    flop_saving: float
    nll_rise: float
    """Nats per token above full depth."""


@dataclass(frozen=True)
class Path:
    """How tokens go from full depth to cheaper exits while the price of FLOPs rises, in S steps at P prices.

    A step takes one token from its exit to a cheaper one. Steps of one price come in no order: in between a
    random part of them is taken, in expectation a straight line.
    """

    tokens: int
    token: np.ndarray
    """(S,) Whose step it is."""
    nats: np.ndarray
    """(S,) By how much the token's loss changes."""
    saved: np.ndarray
    """(S,) FLOPs that it saves, as a share of a token's at full depth."""
    ends: np.ndarray
    """(P,) Steps taken when a price has been reached."""

    @classmethod
    def of(cls, value: np.ndarray, loss: np.ndarray, costs: np.ndarray) -> Path:
        """The path of one whose ``value`` of every token at every exit is (K, N), as is the true ``loss``.

        It visits all choices of exits of least value + price x cost: a token's exits are the corners of the
        lower convex hull of its points (cost, value). The cheaper exit is taken where two are worth the same.
        """
        cheapest_first = np.argsort(costs, kind="stable")
        values, cost = value[cheapest_first].astype(np.float64), costs[cheapest_first].astype(np.float64)
        losses, everyone = loss[cheapest_first], np.arange(value.shape[1])
        exit = np.full(len(everyone), int(np.flatnonzero(cheapest_first == len(costs) - 1)[0]))
        price, target = np.zeros(len(everyone)), values.argmin(0)  # free of charge: the exit of least value
        steps: list[tuple[np.ndarray, ...]] = []
        moves = target != exit
        while True:
            who, old, new = everyone[moves], exit[moves], target[moves]
            nats = losses[new, who].astype(np.float64) - losses[old, who]
            steps.append((price[moves], who, nats, cost[old] - cost[new]))
            exit = np.where(moves, target, exit)
            less_cost = cost[exit] - cost[:, None]
            rate = np.full(values.shape, np.inf)  # nats per FLOP on the way to each cheaper exit
            np.divide(values - values[exit, everyone], less_cost, out=rate, where=less_cost > 0)
            target = rate.argmin(0)
            moves = np.isfinite(rate[target, everyone])
            if not moves.any():
                break
            price = np.maximum(price, rate[target, everyone])  # but for rounding, prices of a token rise
        prices, token, nats, saved = map(np.concatenate, zip(*steps))
        order = np.argsort(prices, kind="stable")
        ends = np.flatnonzero(np.diff(prices[order], append=np.inf)) + 1
        return cls(len(everyone), token[order], nats[order], saved[order], ends)

    def furthest(self, rises: Sequence[float], times: np.ndarray | None = None) -> list[Point]:
        """Where on the path most is saved while perplexity is at most each of ``rises`` (shares) higher.

        It is the last such place, since savings grow along the path while perplexity may fall again; where
        the rise is used up between two prices, a random part of the steps between them is taken.
        ``times`` (N,) says how often each token counts: once, if not given.
        """
        return [point for point in self.within(np.log1p(rises), times) if point is not None]

    def within(
        self, limits: Sequence[float] | np.ndarray, times: np.ndarray | None = None
    ) -> list[Point | None]:
        """The same where the mean loss is at most each of ``limits`` (nats) above full depth's.

        A limit below 0 asks for less loss than full depth has: None where no place on the path has it.
        """
        nats, saved, tokens = self.nats, self.saved, float(self.tokens)
        if times is not None:
            weight = times[self.token]
            nats, saved, tokens = nats * weight, saved * weight, float(times.sum())
        rise, saving = (np.append(0.0, np.cumsum(part)[self.ends - 1]) / tokens for part in (nats, saved))
        out: list[Point | None] = []
        for limit in limits:
            places = np.flatnonzero(rise <= limit)
            if not len(places):
                out.append(None)
                continue
            at = int(places[-1])
            beyond = min(at + 1, len(rise) - 1)
            share = (limit - rise[at]) / (rise[beyond] - rise[at]) if beyond > at else 0.0
            out.append(
                Point(
                    float(saving[at] + share * (saving[beyond] - saving[at])),
                    float(rise[at] + share * (rise[beyond] - rise[at])),
                )
            )
        return out


def bounds(
    loss: np.ndarray,
    argmax: np.ndarray,
    divergence: np.ndarray,
    costs: np.ndarray,
    groups: np.ndarray,
    draws: int,
) -> OracleBounds:
    """What both oracles save; loss, argmax and divergence (KL(full || exit)) are (K, N).

    Intervals are from ``draws`` resamples of ``groups`` (N,).
    """
    return OracleBounds(
        gain=GainBounds(
            least_loss=least_loss(loss, costs),
            same_ppl=largest_saving(loss, costs),
            small_rise=largest_saving(loss, costs, ALLOWED_RISE),
            same_prediction=same_prediction(loss, argmax, costs),
        ),
        attainable=attainable(divergence, loss, costs, groups, draws),
    )


def attainable(
    divergence: np.ndarray, loss: np.ndarray, costs: np.ndarray, groups: np.ndarray, draws: int
) -> AttainableBounds:
    """What the divergence oracle saves at each of RISES, beside random exits; divergence and loss (K, N).

    Intervals are from ``draws`` resamples of ``groups`` (N,), the same for both.
    """
    path, rises = Path.of(divergence, loss, costs), list(RISES.values())
    full, by_chance = _mean(loss[-1]), random_savings(np.array([_mean(row) for row in loss]), costs)
    names, place = np.unique(groups, return_inverse=True)
    resampled = [
        [point.flop_saving for point in path.furthest(rises, times[place])]
        for times in group_draws(len(names), draws, 0)
    ]
    means = GroupSums(groups, dict(enumerate(loss))).resample(draws, 0)
    at_random = [random_savings(row, costs) for row in np.stack(list(means.values()), axis=1)]
    savings, leads = np.array(resampled), np.array(resampled) - np.array(at_random)
    return AttainableBounds(
        **{
            name: Attainable(
                flop_saving=point.flop_saving,
                interval=interval(savings[:, number]),
                ppl=float(np.exp(full + point.nll_rise)),
                random_saving=by_chance[number],
                lead_interval=interval(leads[:, number]),
            )
            for number, (name, point) in enumerate(zip(RISES, path.furthest(rises)))
        }
    )


def random_savings(losses: np.ndarray, costs: np.ndarray) -> list[float]:
    """What the best lottery of exits saves at each of RISES, given the mean loss (K,) at every exit."""
    everybody = losses[:, None]  # whoever knows nothing treats all tokens as one
    return [
        point.flop_saving for point in Path.of(everybody, everybody, costs).furthest(list(RISES.values()))
    ]


def can_leave(
    divergence: np.ndarray, loss: np.ndarray, full: np.ndarray, rise: float = ALLOWED_RISE
) -> float:
    """The largest share of tokens that the divergence oracle lets go at one exit, the only one in use.

    divergence and loss (N,) are those of the exit, ``full`` (N,) is the loss at full depth; perplexity may
    rise by a share of ``rise``.
    """
    value, losses = np.stack([divergence, np.zeros_like(divergence)]), np.stack([loss, full])
    return Path.of(value, losses, np.array([0.0, 1.0])).furthest([rise])[0].flop_saving


def least_loss(loss: np.ndarray, costs: np.ndarray) -> Bound:
    """Every token at its exit of least loss (K, N), the first of equal ones."""
    return _at(loss, costs, loss.argmin(0))


def largest_saving(loss: np.ndarray, costs: np.ndarray, ppl_rise: float = 0.0) -> Bound:
    """The most that the gain oracle saves where perplexity rises by a share of at most ``ppl_rise``.

    loss is (K, N). It is the optimum of a linear programme in which one token may be shared between two
    exits: no choice of exits exceeds it, and some choice misses it by one token at most.
    """
    (point,) = Path.of(loss, loss, costs).furthest([ppl_rise])
    return Bound(flop_saving=point.flop_saving, ppl=float(np.exp(_mean(loss[-1]) + point.nll_rise)))


def same_prediction(loss: np.ndarray, argmax: np.ndarray, costs: np.ndarray) -> Bound:
    """Every token at the earliest exit from which on all predictions are full depth's.

    loss and argmax are (K, N).
    """
    return _at(loss, costs, settled_at(argmax))


def readout_in_use(oracle: Mapping[str, OracleBounds]) -> str:
    """The kind of readout that counts, the first of READOUTS that there is: the exits' own (tuned) where
    training gave them any."""
    return next(kind for kind in READOUTS if kind in oracle)


def settled_at(argmax: np.ndarray) -> np.ndarray:
    """(N,) the earliest exit from which on every exit's argmax (K, N) is that of full depth."""
    settled = np.logical_and.accumulate((argmax == argmax[-1])[::-1])
    return len(argmax) - settled.sum(0)


def _at(loss: np.ndarray, costs: np.ndarray, exits: np.ndarray) -> Bound:
    """What is saved, and the perplexity, at the exits taken (N,)."""
    taken = np.take_along_axis(loss, exits[None], axis=0)
    return Bound(flop_saving=float(1 - costs[exits].mean()), ppl=float(np.exp(_mean(taken))))


def _mean(values: np.ndarray) -> float:
    return float(values.mean(dtype=np.float64))
