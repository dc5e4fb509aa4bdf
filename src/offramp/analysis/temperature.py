"""The softmax temperature of a readout that fits held-out tokens best (Guo et al. 2017, arXiv 1706.04599)."""

from __future__ import annotations

import math

import torch
from scipy.optimize import minimize_scalar
from torch import Tensor

from offramp.errors import UserError
from offramp.states.statistics import Readout, predictions

LIMITS = (0.05, 20.0)
"""Temperatures looked at."""
TOKENS = 50_000
"""Most tokens the fit looks at, evenly spaced."""
PRECISION = 1e-3
"""Of log T."""


def fit_temperature(inputs: Tensor, readout: Readout, targets: Tensor) -> float:
    """The T in LIMITS that minimises the mean NLL of softmax(W h / T), from readout inputs h (N, D) and targets (N,).

    Logits of h / T are logits / T, so no logits are held. The NLL is convex in 1 / T, so a bounded search over log T cannot be
    caught in a second minimum. T > 1: the readout was too sure. A T at a limit has no optimum within (every token right,
    or no better than uniform). UserError without tokens.
    """
    if not len(inputs):
        raise UserError("inputs: no tokens to fit a temperature on; give it held-out tokens")
    rows = torch.linspace(0, len(inputs) - 1, min(len(inputs), TOKENS), dtype=torch.float64).long().to(inputs.device)
    h, wanted = inputs[rows].float(), targets[rows]

    def nll(log_t: float) -> float:
        return predictions(h / math.exp(log_t), readout, wanted)[0].double().mean().item()

    low, high = (math.log(limit) for limit in LIMITS)
    return math.exp(minimize_scalar(nll, bounds=(low, high), method="bounded", options={"xatol": PRECISION}).x)
