"""From a raw signal to a probability that the exit agrees with full depth, and how good such probabilities are."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

EDGE = 1e-3
"""How much confidence may still rise beyond the outermost bins: enough to keep the ranking."""


class Calibrator:
    """A strictly increasing piecewise-linear map of a signal to [0, 1]; it keeps the signal's ranking.

    knots (P,) and values (P,) increase strictly.
    """

    def __init__(self, knots: Tensor, values: Tensor):
        self.knots, self.values = knots.double().cpu(), values.double().cpu()

    def __call__(self, raw: Tensor) -> Tensor:
        """Calibrated confidences, same shape as ``raw``, float32."""
        knots, values = self.knots, self.values
        x = raw.double().cpu().clamp(knots[0], knots[-1])  # on the CPU: float64 does not exist everywhere
        right = torch.searchsorted(knots, x).clamp(1, len(knots) - 1)
        left = right - 1
        weight = (x - knots[left]) / (knots[right] - knots[left])
        return (values[left] + weight * (values[right] - values[left])).float().to(raw.device)


def fit_calibrator(raw: np.ndarray, agrees: np.ndarray, bins: int = 50) -> Calibrator:
    """Isotonic regression of agreement on the signal, over quantile bins, joined by straight lines.

    raw (N,) float, agrees (N,) bool. Bins that isotonic regression pools become one knot, so the map rises
    strictly between knots. Beyond the first and last pooled bin it is all but flat: rarer signals promise no more than
    the outermost bins showed, and no confidence reaches 1, so that nothing leaves at threshold 1.
    """
    from sklearn.isotonic import IsotonicRegression

    order = np.argsort(raw, kind="stable")
    parts = [part for part in np.array_split(order, min(bins, len(order))) if len(part)]
    centre = np.array([raw[part].astype(np.float64).mean() for part in parts])
    rate = np.array([agrees[part].mean() for part in parts])
    size = np.array([len(part) for part in parts], dtype=np.float64)
    pooled = IsotonicRegression(y_min=2 * EDGE, y_max=1 - 2 * EDGE).fit_transform(centre, rate, sample_weight=size)
    knots, values = [], []
    for value in np.unique(pooled):
        members = pooled == value
        knots.append(np.average(centre[members], weights=size[members]))
        values.append(value)
    span = max(float(raw.max() - raw.min()), 1e-6)
    knots = [min(float(raw.min()), knots[0]) - 1e-3 * span, *knots, max(float(raw.max()), knots[-1]) + 1e-3 * span]
    values = [values[0] - EDGE, *values, values[-1] + EDGE]
    return Calibrator(torch.tensor(knots, dtype=torch.float64), torch.tensor(values, dtype=torch.float64))


def reliability(confidence: np.ndarray, agrees: np.ndarray, bins: int = 15) -> list[dict[str, float]]:
    """Per equal-count bin of confidence: mean confidence, share that agrees, number of tokens."""
    order = np.argsort(confidence, kind="stable")
    return [
        {"confidence": float(confidence[part].mean()), "agreement": float(agrees[part].mean()), "tokens": len(part)}
        for part in np.array_split(order, min(bins, len(order))) if len(part)
    ]


def expected_calibration_error(confidence: np.ndarray, agrees: np.ndarray, bins: int = 15) -> float:
    """Mean absolute difference of confidence and agreement over equal-count bins (ECE)."""
    rows = reliability(confidence, agrees, bins)
    total = sum(row["tokens"] for row in rows)
    return float(sum(row["tokens"] * abs(row["confidence"] - row["agreement"]) for row in rows) / total)
