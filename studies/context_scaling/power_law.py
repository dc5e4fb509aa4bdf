"""Power laws of quality by size: ln y = ln A + alpha ln x by least squares, with an interval, and held
against an unseen size.

Perplexities of a scaling law are points on a line of logarithms. Four such points leave two degrees of
freedom: an R^2 near 1 says little, the interval of alpha and the prediction of a held-out size say more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import stdtrit

from offramp.errors import UserError

FEWEST = 3
"""Sizes below which a line leaves nothing to judge it by."""


@dataclass(frozen=True)
class PowerLaw:
    """y = amplitude * x ** alpha."""

    amplitude: float
    alpha: float
    low: float
    """Of the t interval of alpha, with n - 2 degrees of freedom."""
    high: float
    r2: float
    """Of the line of logarithms."""

    def predict(self, size: float) -> float:
        return self.amplitude * size**self.alpha


def fit_power_law(sizes: Sequence[float], values: Sequence[float], level: float = 0.95) -> PowerLaw:
    """Least squares on logarithms, with a t interval of alpha at ``level``.

    UserError for fewer than three different sizes, and for what has no logarithm.
    """
    if len(sizes) != len(values):
        raise UserError(f"power law: {len(sizes)} sizes and {len(values)} values; give one value per size")
    if len(set(sizes)) < FEWEST:
        raise UserError(
            f"power law: sizes = {list(sizes)} are fewer than {FEWEST} different ones; "
            f"measure at least {FEWEST}"
        )
    for name, given in (("sizes", sizes), ("values", values)):
        if not all(math.isfinite(value) and value > 0 for value in given):
            raise UserError(
                f"power law: {name} = {list(given)} have no logarithms; give positive, finite numbers"
            )
    x, y = np.log(np.asarray(sizes, np.float64)), np.log(np.asarray(values, np.float64))
    spread = ((x - x.mean()) ** 2).sum()
    alpha = ((x - x.mean()) * (y - y.mean())).sum() / spread
    offset = y.mean() - alpha * x.mean()
    left, total = ((y - offset - alpha * x) ** 2).sum(), ((y - y.mean()) ** 2).sum()
    half = stdtrit(len(x) - 2, (1 + level) / 2) * math.sqrt(left / (len(x) - 2) / spread)
    r2 = float(1 - left / total) if total else 1.0
    return PowerLaw(math.exp(offset), float(alpha), float(alpha - half), float(alpha + half), r2)


def extrapolation_error(sizes: Sequence[float], values: Sequence[float]) -> float:
    """ln(value / prediction) at the largest size, by the law that the other sizes follow: above 0, the law
    promised too much.

    UserError as ``fit_power_law`` raises it for what is left without that size.
    """
    *known, (size, value) = sorted(zip(sizes, values))
    return math.log(value / fit_power_law(*map(list, zip(*known)) if known else ([], [])).predict(size))
