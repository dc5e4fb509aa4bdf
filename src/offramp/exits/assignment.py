"""Exits of least total value where it is laid down how many tokens take each: how oracles assign them.

Shapes: N tokens, K exits.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

SWEEPS = 50
"""Rounds in which prices are fitted; what is missing after them is mended token by token."""


def exits_of_least(values: np.ndarray, counts: Sequence[int], free: np.ndarray | None = None) -> np.ndarray:
    """Exits (N,) with the least summed value of which ``counts[k]`` are exit k, the rest full depth K-1.

    values (K, N) is what a token costs at each exit, such as its loss or KL(full || exit); free (N,) bool
    says who may leave at all (None: all), the others stay. ValueError for more counts than free tokens.

    With two exits the tokens leave in the order of what leaving adds. With more it is a transport problem:
    every token takes the exit of least value + price, for a price per exit at which the counts come out.
    Prices are fitted exit by exit; tokens that are then too many at an exit go to where they are missing
    along the cheapest chain of moves, which keeps the sum the least one for the counts reached (successive
    shortest paths).
    """
    last = len(values) - 1
    allowed = np.ones(values.shape[1], bool) if free is None else free
    exits = np.full(values.shape[1], last)
    cost = values[:, allowed].astype(np.float64)
    wanted = np.array([*counts, cost.shape[1] - sum(counts)])
    if last != len(counts) or wanted.min() < 0:
        raise ValueError(f"counts {list(counts)} do not fit {cost.shape[1]} tokens and {last} early exits")
    exits[allowed] = _assign(cost, wanted)
    return exits


def _assign(cost: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    exits_count, tokens = cost.shape
    if not tokens:
        return np.zeros(0, np.int64)
    price = np.zeros(exits_count)
    for _ in range(SWEEPS if exits_count > 2 else 1):
        before = price.copy()
        for exit in range(exits_count - 1):
            others = np.delete(cost + price[:, None], exit, axis=0).min(0)
            price[exit] = _boundary(others - cost[exit], int(wanted[exit]))
        if np.array_equal(before, price):
            break
    taken = np.argmin(cost + price[:, None], axis=0)
    _mend(cost, taken, wanted)
    return taken


def _boundary(advantage: np.ndarray, count: int) -> float:
    """The price that ``count`` tokens (N,) are ready to pay: halfway between the last who is and the next."""
    falling = -np.partition(-advantage, [max(count - 1, 0), min(count, len(advantage) - 1)])
    if count == 0:
        return float(falling[0]) + 1
    if count == len(advantage):
        return float(falling[-1]) - 1
    return float(falling[count - 1] + falling[count]) / 2


def _mend(cost: np.ndarray, taken: np.ndarray, wanted: np.ndarray) -> None:
    """Move tokens from exits with too many to exits with too few, along the cheapest chains of moves."""
    exits_count = len(wanted)
    while (surplus := np.bincount(taken, minlength=exits_count) - wanted).any():
        move = np.full((exits_count, exits_count), np.inf)
        for exit in range(exits_count):
            members = cost[:, taken == exit]
            if members.size:
                move[exit] = (members - members[exit]).min(1)
        path = _cheapest_path(move, surplus)
        steps = list(pairwise(path))
        ready = [
            np.flatnonzero((taken == a) & (cost[b] - cost[a] <= move[a, b])) for a, b in steps
        ]  # tokens that tie go together
        many = min(surplus[path[0]], -surplus[path[-1]], *map(len, ready))
        for (_, b), members in zip(steps, ready):
            taken[members[:many]] = b


def _cheapest_path(move: np.ndarray, surplus: np.ndarray) -> list[int]:
    """From some exit with too many to some with too few (Bellman and Ford): the exits along the way."""
    distance = np.where(surplus > 0, 0.0, np.inf)
    before = np.full(len(surplus), -1)
    for _ in range(len(surplus) - 1):
        for a in range(len(surplus)):
            closer = distance[a] + move[a] < distance - 1e-12
            closer[a] = False
            distance[closer], before[closer] = (distance[a] + move[a])[closer], a
    end = int(np.where(surplus < 0, distance, np.inf).argmin())
    path = [end]
    while before[path[-1]] >= 0:
        path.append(int(before[path[-1]]))
    return path[::-1]
