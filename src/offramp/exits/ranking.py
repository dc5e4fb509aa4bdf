"""What a ranking of tokens by confidence picks, and how good it is."""

from __future__ import annotations

import numpy as np


def loss_gap(easy: np.ndarray, loss: np.ndarray) -> float:
    """Mean loss of hard minus mean loss of easy tokens, in nats."""
    return float(loss[~easy].mean() - loss[easy].mean())


def most_confident(score: np.ndarray, count: int) -> np.ndarray:
    """Mask of the ``count`` highest scores; ties go to earlier tokens."""
    mask = np.zeros(len(score), dtype=bool)
    mask[np.argsort(-score, kind="stable")[:count]] = True
    return mask


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """P(a positive token scores above a negative one), ties counting half (Mann-Whitney); NaN with one class only."""
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if not positives or not negatives:
        return float("nan")
    _, place, ties = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (ties.cumsum() - (ties - 1) / 2)[place]  # as scipy.stats.rankdata, whose import takes a second
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def aurc(score: np.ndarray, risk: np.ndarray) -> float:
    """Area under the risk-coverage curve: mean risk of the n most confident tokens, averaged over n (lower is better).

    score (N,), risk (N,): an error per token, 0/1 or nats. Ties go to earlier tokens.
    """
    ordered = risk[np.argsort(-score, kind="stable")].astype(np.float64)
    return float((ordered.cumsum() / np.arange(1, len(ordered) + 1)).mean())


def classification_quality(called: np.ndarray, positive: np.ndarray) -> dict[str, float]:
    """Accuracy, balanced accuracy and F1 of binary decisions (N,), each beside what deciding without looking gives.

    ``majority_accuracy``: always the commoner class. ``majority_f1``: always positive, which no constant decision beats.
    """
    share = float(positive.mean())
    hits, all_called, all_positive = (
        float((called & positive).sum()),
        float(called.sum()),
        float(positive.sum()),
    )
    recall = hits / all_positive if all_positive else 0.0
    negatives = len(positive) - all_positive
    specificity = float((~called & ~positive).sum()) / negatives if negatives else 0.0
    return {
        "accuracy": float((called == positive).mean()),
        "majority_accuracy": max(share, 1 - share),
        "balanced_accuracy": (recall + specificity) / 2,
        "f1": 2 * hits / (all_called + all_positive) if all_called + all_positive else 0.0,
        "majority_f1": 2 * share / (1 + share),
    }
