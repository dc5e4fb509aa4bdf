"""What a model that may decline to speak is worth: at equal shares, for any score, beside chance and the
best there is.

Two questions, both of the same tokens and both without thresholds, so that scores are compared at exactly
equal shares:

    coverage   it keeps silent where the score is low: perplexity of the share it speaks (risk and coverage)
    skips      it takes its skipped steps where the score is low and then speaks: perplexity of all tokens

Scores are oriented: higher = speak now. Shapes: B windows, T tokens of a window, N = B T tokens, m + 1
attempts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from offramp.analysis.discrimination import Ranking
from offramp.errors import UserError
from offramp.states.statistics import Readout, token_statistics
from offramp.systems.selective_output.model import SelectiveLM

TOGETHER = 32
"""Sequences in one pass: a bound on memory."""


@dataclass(frozen=True)
class AttemptStatistics:
    """What every attempt at every token says; float64."""

    nll: np.ndarray
    """(m + 1, N), in nats."""
    entropy: np.ndarray
    """(m + 1, N), in nats."""
    gate: np.ndarray
    """(m + 1, N): the probability of speaking, that of the last attempt included."""
    place: np.ndarray
    """(N,): of the token in its window."""

    def scores(self, seed: int = 0) -> dict[str, np.ndarray]:
        """By whom a model may be told to speak at once, each (N,).

        Its gate, low entropy, chance, and what only hindsight knows ("oracle").
        """
        return {
            "gate": self.gate[0],
            "entropy": -self.entropy[0],
            "random": np.random.default_rng(seed).random(len(self.place)),
            "oracle": self.nll[-1] - self.nll[0],
        }


@torch.no_grad()
def attempt_statistics(
    model: SelectiveLM, tokens: Tensor, targets: Tensor, max_skip: int
) -> AttemptStatistics:
    """All attempts at the targets (B, T) of tokens (B, T). UserError as ``SelectiveLM.attempts``."""
    readout = Readout(model.head.weight)
    parts: dict[str, list[Tensor]] = {"loss": [], "entropy": [], "gate": []}
    for x, y in zip(tokens.split(TOGETHER), targets.split(TOGETHER)):
        attempts = [h.flatten(0, 1) for h in model.attempts(x, max_skip)]
        statistics = [token_statistics([h], [readout], y.flatten())[0] for h in attempts]
        for name in ("loss", "entropy"):
            parts[name].append(torch.stack([attempt[name] for attempt in statistics]))
        parts["gate"].append(torch.stack([model.gate(h) for h in attempts]))
    nll, entropy, gate = (torch.cat(part, 1).double().numpy() for part in parts.values())
    return AttemptStatistics(nll, entropy, gate, np.tile(np.arange(tokens.shape[1]), len(tokens)))


def spoken_nll(score: np.ndarray, nll: np.ndarray, coverage: float) -> float:
    """Mean NLL of the share ``coverage`` of highest score; score and nll (N,). UserError for a share
    outside (0, 1]."""
    weight = _weight_of_highest(score, coverage)
    return float((weight * nll).sum() / weight.sum())


def skipping_nll(score: np.ndarray, nll: np.ndarray, skips: float) -> float:
    """Mean NLL of all tokens where the share ``skips`` of lowest score takes all skipped steps; nll (m + 1,
    N).

    UserError for a share outside [0, 1).
    """
    if not 0 <= skips < 1:
        raise UserError(f"skips = {skips}: give a share of the tokens, from 0 to below 1")
    at_once = _weight_of_highest(score, 1 - skips)
    return float((at_once * nll[0] + (1 - at_once) * nll[-1]).mean())


def _weight_of_highest(score: np.ndarray, coverage: float) -> np.ndarray:
    """Weight (N,) of each token in the share of highest score; tokens with the score at its edge share what
    is left."""
    if not 0 < coverage <= 1:
        raise UserError(f"coverage = {coverage}: give a share of the tokens, above 0 and at most 1")
    return np.ones(len(score)) if coverage == 1 else Ranking(score).easy(coverage)


def coverage_curves(
    scores: Mapping[str, np.ndarray], nll: np.ndarray, coverages: Sequence[float]
) -> dict[str, dict[float, float]]:
    """Perplexity of what is spoken by score and share spoken; nll (N,)."""
    return {
        name: {share: math.exp(spoken_nll(score, nll, share)) for share in coverages}
        for name, score in scores.items()
    }


def gate_figures(gate: np.ndarray, entropy: np.ndarray) -> dict[str, float]:
    """Distribution of a gate (N,) and its Pearson correlation with the entropy (N,).

    Entropy may be what the gate was trained towards: then the correlation is no finding.
    """
    return {
        "gate_mean": float(gate.mean()),
        "gate_std": float(gate.std()),
        "gate_min": float(gate.min()),
        "gate_max": float(gate.max()),
        "gate_entropy_r": float(np.corrcoef(gate, entropy)[0, 1]),
    }


def place_nll(nll: np.ndarray, place: np.ndarray, edges: Sequence[int]) -> list[float]:
    """Mean NLL of the tokens (N,) from each edge up to the next. UserError where no token is that far in
    its window."""
    means = []
    for low, high in pairwise(edges):
        chosen = (place >= low) & (place < high)
        if not chosen.any():
            raise UserError(
                f"edges: no token has a place from {low} to {high - 1}; "
                f"the longest window has {place.max() + 1}"
            )
        means.append(float(nll[chosen].mean()))
    return means
