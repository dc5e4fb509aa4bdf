"""Risk control: whether leaving early costs less than a tolerance, but for a small chance to be wrong.

Learn then Test (arXiv 2110.01052) as in CALM (arXiv 2207.07061): each candidate's null hypothesis "its risk
exceeds the tolerance" gets a p-value from held-out text, and candidates are tested in an order fixed
beforehand, so that with probability 1 - delta over the draw of that text no accepted candidate breaks the
tolerance.

What is assumed: *sequences* are independent draws from the distribution of the text that will be routed.
Tokens of a sequence may depend on each other in any way; they enter as one number, the sequence's mean. The
risk is the mean of that number over sequences, each counting once, whatever its length. Two sequences cut
from one document are not quite independent: the promise is as good as this assumption.

What is promised: the risk that tokens add which leave. What they do to the tokens after them, which find
propagated keys and values in their place, is no part of it (``routing.thresholds``).

Shapes: K exits, N tokens, S sequences.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np

from offramp.errors import UserError

MEASURES = ("disagreement", "error", "nll_increase")
"""What the risk can be: see ``token_risk``."""
NLL_RANGE = (-1.0, 1.0)
"""Bounds, in nats per token, to which a sequence's mean rise in loss is clipped in the promise."""

LARGEST_BET = 0.9
"""Share of the wealth a bet may lose at most: below 1, so that one bad sequence does not end the test."""

SEARCHED = 1_000_000
"""The largest number of sequences for which ``sequences_needed`` searches."""


def token_risk(measure: str, loss: np.ndarray, argmax: np.ndarray, target: np.ndarray) -> np.ndarray:
    """What each token adds to the risk if it leaves at each exit: (K, N) float64, 0 at full depth (row K-1).

    ``loss`` is (K, N) in nats, ``argmax`` (K, N), ``target`` (N,). The measures are ``disagreement``: another
    argmax than full depth; ``error``: full depth predicts the target and the exit does not, which bounds the
    rise of the error rate; ``nll_increase``: loss at the exit minus loss at full depth. UserError for
    another.
    """
    if measure == "disagreement":
        return (argmax != argmax[-1]).astype(np.float64)
    if measure == "error":
        return ((argmax[-1] == target) & (argmax != target)).astype(np.float64)
    if measure == "nll_increase":
        return loss.astype(np.float64) - loss[-1]
    raise UserError(f"exits.risk.measure = {measure!r}: choose from {', '.join(MEASURES)}")


def sequence_losses(
    measure: str, exits_taken: np.ndarray, risk: np.ndarray, sequence: np.ndarray
) -> np.ndarray:
    """The mean risk of each sequence's tokens at the exits that they take: (S,) float64.

    ``exits_taken`` is (N,), ``risk`` (K, N) as of ``token_risk``, ``sequence`` (N,) the number of each
    token's sequence, 0 .. S-1, every number at least once. ``nll_increase`` is clipped to ``NLL_RANGE``.
    """
    taken = np.take_along_axis(risk, exits_taken[None], axis=0)[0]
    means = np.bincount(sequence, weights=taken) / np.bincount(sequence)
    return means.clip(*NLL_RANGE) if measure == "nll_increase" else means


def hoeffding_bentkus(mean: float, n: int, tolerance: float) -> float:
    """P-value for "the expectation exceeds ``tolerance``" from the mean of n independent values.

    The values lie in [0, 1].

    The smaller of Hoeffding's bound in its relative-entropy form and Bentkus's binomial bound (arXiv
    2110.01052, prop. 1).
    """
    from scipy.special import bdtr, rel_entr  # only promises need it, and it takes a tenth of a second

    low = min(mean, tolerance)
    hoeffding = math.exp(-n * float(rel_entr(low, tolerance) + rel_entr(1 - low, 1 - tolerance)))
    # the margin keeps a count that was divided by n and multiplied again from being rounded up to the next
    # one
    bentkus = math.e * float(bdtr(math.ceil(n * mean - 1e-9), n, tolerance))
    return min(1.0, hoeffding, bentkus)


def betting(values: np.ndarray, tolerance: float, low: float, high: float, level: float = 0.05) -> float:
    """P-value for "the expectation exceeds ``tolerance``" from independent values (n,) in [low, high].

    Waudby-Smith and Ramdas (arXiv 2010.09686): a gambler stakes on every value being below the tolerance;
    under the hypothesis the wealth is a supermartingale, so 1 / its highest point is a p-value (Ville). The
    bets follow the variance of the values seen so far, which is what makes it sharp where values vary much
    less than their range. They may look only back: the order of ``values`` must be fixed without looking at
    them. ``level`` is where the bets are tuned to reject; the p-value is valid at every level.
    """
    n = len(values)
    x = (np.asarray(values, dtype=np.float64) - low) / (high - low)
    goal = (tolerance - low) / (high - low)
    widest = goal * (1 - goal)  # the largest variance that a mean of ``goal`` allows
    # one imagined value comes first, at the tolerance and of that variance
    seen = np.arange(1, n + 1) + 1
    mean = (goal + np.cumsum(x)) / seen
    variance = (widest + np.cumsum((x - mean) ** 2)) / seen
    before = np.concatenate([[widest], variance[:-1]])
    bets = np.minimum(np.sqrt(2 * math.log(1 / level) / (n * before)), LARGEST_BET / (1 - goal))
    return math.exp(-max(0.0, float(np.cumsum(np.log1p(bets * (goal - x))).max())))


def p_value(measure: str, losses: np.ndarray, tolerance: float, delta: float) -> float:
    """P-value for "the risk exceeds ``tolerance``" from the risks (S,) of independent sequences.

    ``losses`` are those of ``sequence_losses``; ``delta`` is the level at which the test is sharpest.
    """
    if measure == "nll_increase":
        return betting(losses, tolerance, *NLL_RANGE, level=delta)
    return hoeffding_bentkus(float(losses.mean()), len(losses), tolerance)


def fixed_sequence(p_values: Iterable[float], delta: float) -> int:
    """Index of the last p-value before the first that exceeds ``delta``, or -1; none after that is drawn.

    With hypotheses ordered beforehand, the chance that any rejected one is true is at most delta, without
    correction.
    """
    last = -1
    for p in p_values:
        if p > delta:
            break
        last += 1
    return last


def check_promise(measure: str, tolerance: float, delta: float) -> None:
    """UserError unless measure, tolerance and delta make a promise that can be tested."""
    if measure not in MEASURES:
        raise UserError(f"exits.risk.measure = {measure!r}: choose from {', '.join(MEASURES)}")
    for name, value, meaning in (
        ("tolerance", tolerance, "the risk allowed"),
        ("delta", delta, "the probability that the promise is broken"),
    ):
        if not 0 < value < 1:
            raise UserError(f"exits.risk.{name} = {value}: give a number above 0 and below 1, {meaning}")


def sequences_needed(measure: str, tolerance: float, delta: float) -> int:
    """The fewest sequences that can confirm the tolerance, which is when none of them shows any risk.

    Beyond a million the answer for ``nll_increase`` is a lower bound (bets at their largest from the first
    on). UserError as of ``check_promise``.
    """
    check_promise(measure, tolerance, delta)
    if measure != "nll_increase":
        return math.ceil(math.log(delta) / math.log1p(-tolerance) - 1e-9)

    def confirmed(n: int) -> bool:
        return p_value(measure, np.zeros(n), tolerance, delta) <= delta

    low = math.ceil(math.log(1 / delta) / math.log1p(LARGEST_BET * tolerance / (NLL_RANGE[1] - tolerance)))
    if low > SEARCHED:
        return low
    high = low
    while not confirmed(high):
        high *= 2
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if confirmed(middle) else (middle + 1, high)
    return low


def require_sequences(have: int, measure: str, tolerance: float, delta: float) -> None:
    """UserError if ``have`` sequences could not confirm the tolerance even if none showed any risk."""
    needed = sequences_needed(measure, tolerance, delta)
    if have < needed:
        raise UserError(
            f"exits.risk: measure {measure}, tolerance {tolerance} and delta {delta} need at least {needed} "
            f"held-out sequences to test on, there are {have}: give more calibration text, "
            "or raise tolerance or delta"
        )
