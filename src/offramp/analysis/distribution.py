"""The distribution of per-token losses: its shape, and whether it has two modes.

The report loss-prediction said that it has, without a test.
"""

from __future__ import annotations

from typing import Any

import diptest
import numpy as np
from scipy.stats import norm
from sklearn.mixture import GaussianMixture

from offramp.errors import UserError

QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
TESTED = 70_000
"""Most values the tests look at: the tabulated critical values of the dip end at 72,000."""
LEVEL = 0.01
"""The dip test rejects one mode below this p."""


def finite(name: str, values: np.ndarray) -> np.ndarray:
    """``values`` (N,) as float64; UserError where a number is missing or infinite."""
    values = np.asarray(values, dtype=np.float64)
    if not np.isfinite(values).all():
        bad = int(np.flatnonzero(~np.isfinite(values))[0])
        raise UserError(
            f"{name}[{bad}] = {values[bad]}: separation needs finite values; leave such tokens out"
        )
    return values


def gaussian_d(easy_fraction: float) -> float:
    """Cohen's d of ANY Gaussian variable split at its ``easy_fraction`` quantile (2.65 at the median).

    Closed form: with z the quantile, the parts are truncated normals of means -phi(z)/f and phi(z)/(1-f). A d
    near it says nothing about two groups of tokens.
    """
    z, below, above = norm.ppf(easy_fraction), easy_fraction, 1 - easy_fraction
    low, high = -norm.pdf(z) / below, norm.pdf(z) / above
    variances = 1 + z * low - low**2, 1 + z * high - high**2
    return float((high - low) / np.sqrt(sum(variances) / 2))


def loss_distribution(loss: np.ndarray, bin_width: float = 0.5) -> dict[str, Any]:
    """Moments, quantiles, histogram (bins of ``bin_width`` nats) and a test of bimodality of losses (N,).

    ``dip``, ``dip_p``: Hartigan and Hartigan's dip (1985), against the least favourable single mode, the
    uniform. The dip is also the size of the effect: how far, as a share of all tokens, the nearest
    distribution with one mode is. ``bic`` of 1 and 2 Gaussians; ``bic_gain`` = bic[1] - bic[2], positive
    where two fit better; ``components`` of the two. ``bimodal`` needs both: p < LEVEL and two Gaussians. A
    mixture alone also wins for one skewed mode, and a dip alone could be a ripple. Both look at
    ``tested_tokens`` evenly spaced in the order given (at most TESTED). Tokens count as independent, so that
    with texts of few tokens each p is somewhat too small.
    """
    loss = finite("loss", loss)
    if len(loss) < 4:
        raise UserError(f"loss has {len(loss)} tokens; the test of bimodality needs at least 4")
    tested = loss[np.linspace(0, len(loss) - 1, min(len(loss), TESTED)).astype(np.int64)]
    dip, p = (float(value) for value in diptest.diptest(tested))
    fits = {count: GaussianMixture(count, random_state=0).fit(tested[:, None]) for count in (1, 2)}
    bic = {count: float(fit.bic(tested[:, None])) for count, fit in fits.items()}
    two = fits[2]
    components = [
        {
            "weight": float(two.weights_[place]),
            "mean": float(two.means_[place, 0]),
            "std": float(two.covariances_[place, 0, 0] ** 0.5),
        }
        for place in np.argsort(two.means_[:, 0])
    ]
    return {
        "tokens": len(loss),
        "mean": float(loss.mean()),
        "std": float(loss.std()),
        "min": float(loss.min()),
        "max": float(loss.max()),
        "quantiles": {
            str(level): float(value) for level, value in zip(QUANTILES, np.quantile(loss, QUANTILES))
        },
        "bin_width": bin_width,
        "histogram": _histogram(loss, bin_width),
        "tested_tokens": len(tested),
        "dip": dip,
        "dip_p": p,
        "bic": {str(count): value for count, value in bic.items()},
        "bic_gain": bic[1] - bic[2],
        "components": components,
        "bimodal": p < LEVEL and bic[2] < bic[1],
    }


def _histogram(loss: np.ndarray, width: float) -> list[dict[str, float]]:
    """Rows low, high, tokens, share; bins start at a multiple of the width."""
    first = np.floor(loss.min() / width)
    place = np.floor(loss / width - first).astype(np.int64)
    return [
        {
            "low": float((first + bin) * width),
            "high": float((first + bin + 1) * width),
            "tokens": int(count),
            "share": float(count / len(loss)),
        }
        for bin, count in enumerate(np.bincount(place))
    ]
