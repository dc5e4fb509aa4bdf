"""One threshold per exit, chosen on held-out tokens: by a promise about the risk, or by a compute budget.

Everything here reads cached states: confidences, losses and predictions of every exit *as if no token had
left before*. For the first exit they are those of routing itself. Behind it, a routed token attends to
propagated keys/values of tokens that left, and so it is predicted otherwise, at full depth or where it leaves
later. A promise is about tokens that leave; what propagation does to the others comes on top of it. To
promise that too, every candidate down to the chosen one would have to be executed on the held-out text,
instead of looked up: as many passes as there are candidates, for a choice that takes none. So the evaluation
measures it instead, on the test split: ``propagation_risk`` beside ``leavers_risk``, and ``propagation_nll``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from offramp.errors import UserError
from offramp.exits.risk import (
    check_promise,
    fixed_sequence,
    p_value,
    require_sequences,
    sequence_losses,
    token_risk,
)
from offramp.exits.store import Exits
from offramp.results.exits import ThresholdEffect

NOBODY = 1.0
"""The threshold at which nobody leaves: calibrated confidences stay below it."""


@dataclass(frozen=True)
class HeldOut:
    """Held-out tokens with what every exit says of them, as if nobody had left before.

    confidence (K-1, N) in [0, 1), loss (K, N) nats, argmax (K, N), target (N,), sequence (N,) int.
    """

    confidence: np.ndarray
    loss: np.ndarray
    argmax: np.ndarray
    target: np.ndarray
    sequence: np.ndarray

    def __post_init__(self) -> None:
        exits, tokens = self.loss.shape
        shapes = {
            "confidence": (exits - 1, tokens),
            "argmax": (exits, tokens),
            "target": (tokens,),
            "sequence": (tokens,),
        }
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"{name} has shape {getattr(self, name).shape}, loss asks for {shape}")
        if self.confidence.size and not self.confidence.max() < NOBODY:
            raise ValueError(f"confidences must be below {NOBODY}, found {self.confidence.max()}")

    def after(self, first: int) -> HeldOut:
        """The exits from ``first`` on, for policies that ask no earlier one."""
        return HeldOut(
            self.confidence[first:], self.loss[first:], self.argmax[first:], self.target, self.sequence
        )

    def risk(self, measure: str) -> np.ndarray:
        """Risk (K, N) of leaving at each exit; see ``offramp.exits.risk.token_risk``."""
        return token_risk(measure, self.loss, self.argmax, self.target)


@dataclass(frozen=True)
class RiskChoice:
    """Thresholds that keep a promise about the tokens that leave, and the evidence for it on the test part.

    ``passed`` of the ``tested`` steps down the path kept it; 0 means that nobody may leave.
    """

    thresholds: list[float]
    tested: int
    passed: int
    risk: float
    p_value: float
    sequences: int


def exits_taken(confidence: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """The first exit whose confidence reaches its threshold, K-1 where none does: (N,) int.

    confidence (K-1, N), thresholds (K-1,); compared in the precision of the confidences, as the executor
    does.
    """
    bars = np.asarray(thresholds, dtype=confidence.dtype)
    exits = np.full(confidence.shape[1], len(confidence), dtype=np.int64)
    for exit in reversed(range(len(confidence))):
        exits[confidence[exit] >= bars[exit]] = exit
    return exits


def sweep(
    confidence: np.ndarray, values: dict[str, np.ndarray], thresholds: np.ndarray
) -> dict[str, np.ndarray]:
    """Exit shares and mean values for many thresholds, each common to all exits, in one pass over the tokens.

    confidence (K-1, N), values: name -> (K, N), thresholds (T,) in any order -> ``exit_fraction`` (T, K) and,
    per name, the mean at the exits taken (T,). A token has left by exit k for the thresholds up to the
    highest confidence among exits 0..k; so per exit each token falls between two sorted thresholds, and sums
    over all tokens above are suffix sums of a histogram: O(N K log T + T), no loop over thresholds.
    """
    last, tokens = confidence.shape
    thresholds = np.asarray(thresholds, dtype=confidence.dtype)
    order = np.argsort(thresholds)
    back = np.argsort(order)
    rising = thresholds[order]
    left_by = np.zeros((last + 2, len(thresholds)))
    left_by[last + 1] = tokens
    sums = {
        name: np.full(len(thresholds), value[last].sum(dtype=np.float64)) for name, value in values.items()
    }
    highest = np.full(tokens, -np.inf, dtype=confidence.dtype)
    for exit in range(last):
        np.maximum(highest, confidence[exit], out=highest)
        # thresholds at which the token has left by now
        reached = np.searchsorted(rising, highest, side="right")
        left_by[exit + 1] = _above(reached, None, len(thresholds))
        for name, value in values.items():  # leaving by here instead of going one exit on
            gain = np.subtract(value[exit], value[exit + 1], dtype=np.float64)
            sums[name] += _above(reached, gain, len(thresholds))
    out = {"exit_fraction": (np.diff(left_by, axis=0) / tokens).T[back]}
    return out | {name: total[back] / tokens for name, total in sums.items()}


def threshold_table(exits: Exits, count: int = 101) -> list[ThresholdEffect]:
    """Rows of thresholds.csv: what each threshold does on held-out calibration text, for every signal.

    From cached states, for choosing a threshold before looking at any test text. ``ppl`` is without state
    propagation.
    """
    rows: list[ThresholdEffect] = []
    thresholds = np.linspace(0, 1, count)
    for signal in exits.config["signals"]:
        held = HeldOut(**exits.held_out(signal, "select"))
        agrees = (held.argmax == held.argmax[-1]).astype(np.float32)
        effects = sweep(held.confidence, {"loss": held.loss, "agreement": agrees}, thresholds)
        rows += [
            ThresholdEffect(
                signal=signal,
                threshold=float(threshold),
                shallow_ratio=float(1 - shares[-1]),
                ppl=float(np.exp(loss)),
                agreement=float(agreement),
            )
            for threshold, shares, loss, agreement in zip(
                thresholds, effects["exit_fraction"], effects["loss"], effects["agreement"]
            )
        ]
    return rows


def _above(reached: np.ndarray, weights: np.ndarray | None, count: int) -> np.ndarray:
    """Per sorted threshold i < count, the summed weight of tokens with ``reached`` > i."""
    histogram = np.bincount(reached, weights=weights, minlength=count + 1)
    return np.cumsum(histogram[::-1])[::-1][1:]


class Move(NamedTuple):
    """Some more tokens leave at an exit."""

    rate: float
    """Risk that it adds per compute that it saves."""
    exit: int
    leaving: np.ndarray
    """Which tokens, by falling confidence."""


class Descent:
    """The way from "nobody leaves" to "all leave at exit 0", each step lowering the threshold of one exit.

    costs (K,) rising: compute of a token that leaves at exit k, 1 = a full-depth token without routing; risk
    (K, N). Every move lets ceil(N / steps) more tokens leave at one exit, the most confident that still pass
    it, and all that tie with the last of them.
    """

    def __init__(self, held: HeldOut, costs: np.ndarray, risk: np.ndarray, steps: int):
        self.held, self.costs, self.risk = held, np.asarray(costs, dtype=np.float64), risk
        last, tokens = held.confidence.shape
        self.size = math.ceil(tokens / steps)
        """Of a move without ties, in tokens."""
        self.exits = np.full(tokens, last)
        """Taken so far, (N,)."""
        self.thresholds = [NOBODY] * last
        self._passing = [np.argsort(-row, kind="stable") for row in held.confidence]

    def moves(self) -> list[Move]:
        """The next ones, one at each exit that tokens still pass."""
        moves = []
        for exit, row in enumerate(self.held.confidence):
            passing = self._passing[exit]
            self._passing[exit] = passing = passing[self.exits[passing] > exit]
            leaving = _most_confident(passing, row, self.size)
            if len(leaving):
                now = self.exits[leaving]
                added = (self.risk[exit, leaving] - self.risk[now, leaving]).sum()
                saved = (self.costs[now] - self.costs[exit]).sum()
                moves.append(Move(added / saved, exit, leaving))
        return moves

    def after(self, move: Move) -> tuple[list[float], np.ndarray]:
        """The thresholds and the exits taken (N,) after a move."""
        thresholds, exits = list(self.thresholds), self.exits.copy()
        exits[move.leaving] = move.exit
        thresholds[move.exit] = float(self.held.confidence[move.exit, move.leaving[-1]])
        return thresholds, exits

    def take(self, move: Move) -> None:
        self.thresholds, self.exits = self.after(move)


def threshold_path(held: HeldOut, costs: np.ndarray, risk: np.ndarray, steps: int = 100) -> list[list[float]]:
    """Threshold vectors from "nobody leaves" to "all leave at exit 0", each lower than the last in one exit.

    For the arguments see ``Descent``. Every step is taken at the exit where it adds least risk per compute
    saved. Greedy, in the spirit of Pareto testing (arXiv 2210.07913); with two exits it is the plain path
    through the quantiles.
    """
    descent = Descent(held, costs, risk, steps)
    path = [descent.thresholds]
    while moves := descent.moves():
        descent.take(min(moves, key=lambda move: move[:2]))
        path.append(descent.thresholds)
    return path


def _most_confident(passing: np.ndarray, confidence: np.ndarray, size: int) -> np.ndarray:
    """The first ``size`` of the tokens ``passing``, by falling confidence, and all that tie with the last."""
    if len(passing) > size:
        size = int(np.searchsorted(-confidence[passing], -confidence[passing[size - 1]], side="right"))
    return passing[:size]


def risk_thresholds(
    select: HeldOut,
    test: HeldOut,
    costs: np.ndarray,
    *,
    measure: str,
    tolerance: float,
    delta: float,
    steps: int = 100,
) -> RiskChoice:
    """The cheapest thresholds on the path at which tokens that leave add a risk of at most ``tolerance``.

    They may fail to with a probability of at most ``delta``. What tokens add that go on is not in it.
    The path is made on ``select``; ``test`` holds other, independent sequences, on which its points are
    tested in order (fixed-sequence testing) until one fails. If the first fails already, nobody leaves and
    ``passed`` is 0. Assumptions: see ``offramp.exits.risk``. Raises UserError for tolerance or delta outside
    (0, 1) and for fewer test sequences than the bound can use.
    """
    check_promise(measure, tolerance, delta)
    numbers, sequence = np.unique(test.sequence, return_inverse=True)
    require_sequences(len(numbers), measure, tolerance, delta)
    path = threshold_path(select, costs, select.risk(measure), steps)
    risk, tested = test.risk(measure), 0

    def losses(thresholds: list[float]) -> np.ndarray:
        return sequence_losses(measure, exits_taken(test.confidence, thresholds), risk, sequence)

    def p_values() -> Iterator[float]:
        nonlocal tested
        for thresholds in path[1:]:
            tested += 1
            yield p_value(measure, losses(thresholds), tolerance, delta)

    passed = fixed_sequence(p_values(), delta) + 1
    held_out = losses(path[passed])
    return RiskChoice(
        thresholds=path[passed],
        tested=tested,
        passed=passed,
        risk=float(held_out.mean()),
        p_value=p_value(measure, held_out, tolerance, delta),
        sequences=len(numbers),
    )


def budget_thresholds(
    select: HeldOut, costs: np.ndarray, budget: float, kept: float = 0.0, steps: int = 100
) -> list[float]:
    """Thresholds of least added loss whose expected compute is within ``budget``.

    They are the first such point of the path; see ``_within`` for confidences that tie.

    costs (K,) as for ``threshold_path``; budget: share of the compute of full depth; kept: share of tokens
    that are not in ``select`` and go to full depth whatever the thresholds. Raises UserError if the budget is
    outside (0, 1) or less than all other tokens leaving at the first of these exits cost.
    """
    costs = np.asarray(costs, dtype=np.float64)
    if not 0 < budget < 1:
        raise UserError(
            f"routing.budget = {budget}: give a fraction of the full-depth FLOPs, above 0 and below 1"
        )
    least = kept + (1 - kept) * costs[0]
    if least > budget:
        raise UserError(
            f"routing.budget = {budget}: even with every token leaving at the first exit that is asked the "
            f"fraction is {least:.4f}; give at least {math.ceil(least * 1e4) / 1e4:.4f}, or make the first "
            "block or its readout smaller"
        )
    risk = select.risk("nll_increase")
    return _within(
        Descent(select, costs, risk, steps),
        lambda exits: bool(kept + (1 - kept) * costs[exits].mean() <= budget + 1e-9),
    )


def _within(descent: Descent, affordable: Callable[[np.ndarray], bool]) -> list[float]:
    """The thresholds at which a descent becomes affordable, as the exits taken (N,) say.

    Where confidences tie, a move may let out far more than is still needed. Such a move is put aside and the
    descent goes on at the other exits; of the ends found, the one that adds least risk is it.
    """
    if affordable(descent.exits):
        return descent.thresholds
    ends: list[tuple[float, list[float]]] = []
    aside: set[int] = set()
    while moves := [move for move in descent.moves() if move.exit not in aside]:
        move = min(moves, key=lambda move: move[:2])
        thresholds, exits = descent.after(move)
        if not affordable(exits):
            descent.take(move)
            continue
        risk = float(np.take_along_axis(descent.risk, exits[None], axis=0).sum())
        ends.append((risk, thresholds))
        if len(move.leaving) < 2 * descent.size:
            break
        aside.add(move.exit)
    return min(ends)[1]
