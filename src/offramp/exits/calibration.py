"""From a raw signal to a probability that the exit agrees with full depth, and how good such probabilities are."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class Calibrator:
    """A strictly increasing piecewise-linear map of a signal to [0, 1]; it keeps the signal's ranking.

    knots (P,) and values (P,) increase strictly.
    """

    def __init__(self, knots: Tensor, values: Tensor):
        self.knots, self.values = knots.double(), values.double()

    def __call__(self, raw: Tensor) -> Tensor:
        """Calibrated confidences, same shape as ``raw``, float32."""
        knots, values = self.knots.to(raw.device), self.values.to(raw.device)
        x = raw.double().clamp(knots[0], knots[-1])
        right = torch.searchsorted(knots, x).clamp(1, len(knots) - 1)
        left = right - 1
        weight = (x - knots[left]) / (knots[right] - knots[left])
        return (values[left] + weight * (values[right] - values[left])).float()

    def to(self, device: torch.device) -> Calibrator:
        return Calibrator(self.knots.to(device), self.values.to(device))


def fit_calibrator(raw: np.ndarray, agrees: np.ndarray, bins: int = 50) -> Calibrator:
    """Isotonic regression of agreement on the signal, over quantile bins, joined by straight lines.

    raw (N,) float, agrees (N,) bool. Bins that isotonic regression pools become one knot, so the map rises
    strictly between knots; the ends go to 0 and 1 just outside the signals seen.
    """
    from sklearn.isotonic import IsotonicRegression

    order = np.argsort(raw, kind="stable")
    parts = [part for part in np.array_split(order, min(bins, len(order))) if len(part)]
    centre = np.array([raw[part].astype(np.float64).mean() for part in parts])
    rate = np.array([agrees[part].mean() for part in parts])
    size = np.array([len(part) for part in parts], dtype=np.float64)
    pooled = IsotonicRegression(y_min=1e-3, y_max=1 - 1e-3).fit_transform(centre, rate, sample_weight=size)
    knots, values = [], []
    for value in np.unique(pooled):
        members = pooled == value
        knots.append(np.average(centre[members], weights=size[members]))
        values.append(value)
    span = max(float(raw.max() - raw.min()), 1e-6)
    knots = [min(float(raw.min()), knots[0]) - 1e-3 * span, *knots, max(float(raw.max()), knots[-1]) + 1e-3 * span]
    values = [0.0, *values, 1.0]
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
