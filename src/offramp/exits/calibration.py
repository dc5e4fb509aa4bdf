"""Calibration: from a signal to the probability that the exit agrees with full depth, and how true that is.

And from a predicted benefit to the gain in nats that going on brings.

Shapes: N tokens, P knots of a calibrator.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from offramp.states.resampling import GroupSums, group_draws, interval

EDGE = 1e-3
"""How much confidence rises beyond the outermost bins: little, but enough to keep the ranking."""


class Calibrator:
    """A strictly increasing piecewise-linear map of a signal to [0, 1]; it keeps the signal's ranking.

    ``knots`` (P,), values of the signal, and ``values`` (P,), their confidences, increase strictly.
    """

    def __init__(self, knots: Tensor, values: Tensor):
        self.knots, self.values = knots.double().cpu(), values.double().cpu()

    def __call__(self, raw: Tensor) -> Tensor:
        """Calibrated confidences of signals ``raw``, in the same shape, float32."""
        knots, values = self.knots, self.values
        x = raw.double().cpu().clamp(knots[0], knots[-1])  # on the CPU: float64 does not exist everywhere
        right = torch.searchsorted(knots, x).clamp(1, len(knots) - 1)
        left = right - 1
        weight = (x - knots[left]) / (knots[right] - knots[left])
        return (values[left] + weight * (values[right] - values[left])).float().to(raw.device)


def fit_calibrator(raw: np.ndarray, agrees: np.ndarray, method: str = "isotonic") -> Calibrator:
    """A calibrator from signals ``raw`` (N,) and whether each token's exit agrees with full depth, (N,) bool.

    ``method`` is isotonic or temperature.
    """
    return {"isotonic": _isotonic, "temperature": _temperature}[method](raw, agrees)


def _temperature(raw: np.ndarray, agrees: np.ndarray, knots: int = 256) -> Calibrator:
    """sigmoid((x - offset) / T) with the temperature T and the offset of greatest likelihood (Platt), T > 0.

    x is the standardised signal. Two numbers instead of a curve overfit less, and fit less. The map is stored
    at ``knots`` quantiles of the signal, with straight lines between them.
    """
    from scipy.optimize import minimize
    from scipy.special import expit

    x = raw.astype(np.float64)
    centre, spread = x.mean(), max(x.std(), 1e-12)
    x, y = (x - centre) / spread, agrees.astype(np.float64)

    def nll(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        slope = np.exp(parameters[0])
        z = slope * x + parameters[1]
        wrong = expit(z) - y
        return float(np.mean(np.logaddexp(0, z) - y * z)), np.array(
            [np.mean(wrong * x) * slope, np.mean(wrong)]
        )

    log_slope, offset = minimize(nll, np.zeros(2), jac=True, method="L-BFGS-B", bounds=[(-6, 6), (-20, 20)]).x
    places = np.unique(np.quantile(x, np.linspace(0, 1, knots)))
    places = np.concatenate(([places[0] - 1], places, [places[-1] + 1]))
    values = np.clip(expit(np.exp(log_slope) * places + offset), EDGE, 1 - EDGE)
    values += np.linspace(-EDGE, EDGE, len(values)) / 10  # strictly rising also where clipped
    return Calibrator(torch.from_numpy(places * spread + centre), torch.from_numpy(values))


def _isotonic(raw: np.ndarray, agrees: np.ndarray, bins: int = 50) -> Calibrator:
    """Isotonic regression of agreement on the signal, over quantile bins, joined by straight lines.

    Bins that isotonic regression pools become one knot, so the map rises strictly between knots. Beyond the
    first and last pooled bin it is all but flat: rarer signals promise no more than the outermost bins
    showed, and no confidence reaches 1, so that nothing leaves at threshold 1.
    """
    from sklearn.isotonic import IsotonicRegression

    order = np.argsort(raw, kind="stable")
    parts = [part for part in np.array_split(order, min(bins, len(order))) if len(part)]
    centre = np.array([raw[part].astype(np.float64).mean() for part in parts])
    rate = np.array([agrees[part].mean() for part in parts])
    size = np.array([len(part) for part in parts], dtype=np.float64)
    pooled = IsotonicRegression(y_min=2 * EDGE, y_max=1 - 2 * EDGE).fit_transform(
        centre, rate, sample_weight=size
    )
    knots, values = [], []
    for value in np.unique(pooled):
        members = pooled == value
        knots.append(np.average(centre[members], weights=size[members]))
        values.append(value)
    span = max(float(raw.max() - raw.min()), 1e-6)
    knots = [
        min(float(raw.min()), knots[0]) - 1e-3 * span,
        *knots,
        max(float(raw.max()), knots[-1]) + 1e-3 * span,
    ]
    values = [values[0] - EDGE, *values, values[-1] + EDGE]
    return Calibrator(torch.tensor(knots, dtype=torch.float64), torch.tensor(values, dtype=torch.float64))


def gain_slope(
    predicted: np.ndarray, gain: np.ndarray, documents: np.ndarray, draws: int, seed: int
) -> tuple[float, list[float] | None]:
    """The slope of the true ``gain`` (N,) on ``predicted`` benefits (N,), in nats, and its 95 % interval.

    The line goes through the origin and has least squares: of all multiples of the prediction it is the one
    nearest to the gain. Predictions are what a policy weighs, so the slope is on them: one on the true
    divergence would leave out what is wrong with the prediction of it. Of a predicted gain it is 1 if the
    classifier does not exaggerate; of a predicted divergence it is above 1 where full depth changes the
    exit's prediction by less than the text bears out, and below 1 where by more. Where nothing is predicted
    there is nothing to multiply, and the slope is 1. The interval resamples ``documents`` (N,) ``draws``
    times.
    """
    predicted, gain = predicted.astype(np.float64), gain.astype(np.float64)
    products = {"both": predicted * gain, "square": predicted**2}
    if not products["square"].any():
        return 1.0, None
    resampled = GroupSums(documents, products).resample(draws, seed)
    slope = products["both"].sum() / products["square"].sum()
    with np.errstate(invalid="ignore"):  # resamples of documents of which nothing is predicted
        return float(slope), interval(resampled["both"] / resampled["square"])


def reliability(confidence: np.ndarray, agrees: np.ndarray, bins: int = 15) -> list[dict[str, float]]:
    """Bins of confidence with equally many tokens: mean confidence, share that agrees, number of tokens.

    ``confidence`` and ``agrees`` are (N,). The bins come in increasing order of confidence.
    """
    order = np.argsort(confidence, kind="stable")
    return [
        {
            "confidence": float(confidence[part].mean()),
            "agreement": float(agrees[part].mean()),
            "tokens": len(part),
        }
        for part in np.array_split(order, min(bins, len(order)))
        if len(part)
    ]


def expected_calibration_error(confidence: np.ndarray, agrees: np.ndarray, bins: int = 15) -> float:
    """Expected calibration error: the mean absolute difference of confidence and agreement over the bins."""
    rows = reliability(confidence, agrees, bins)
    total = sum(row["tokens"] for row in rows)
    return float(sum(row["tokens"] * abs(row["confidence"] - row["agreement"]) for row in rows) / total)


def resampled_calibration_error(
    confidence: np.ndarray, agrees: np.ndarray, documents: np.ndarray, draws: int, seed: int, bins: int = 15
) -> np.ndarray:
    """ECE (draws,) under resamples of documents, the bins staying as they are on all tokens.

    An absolute value, so the draws lie a little above the estimate: noise within a bin adds to it.
    """
    order = np.argsort(confidence, kind="stable")
    bin_of = np.empty(len(order), np.int64)
    for number, part in enumerate(np.array_split(order, min(bins, len(order)))):
        bin_of[part] = number
    names, place = np.unique(documents, return_inverse=True)
    count = len(names)

    def sums(values: np.ndarray) -> np.ndarray:
        return np.bincount(place * bins + bin_of, weights=values, minlength=count * bins).reshape(count, bins)

    gaps, tokens = sums(confidence.astype(np.float64) - agrees), sums(np.ones(len(order)))
    times = group_draws(count, draws, seed)
    return np.abs(times @ gaps).sum(1) / (times @ tokens).sum(1)
