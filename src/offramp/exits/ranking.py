"""Rankings of tokens by a score: which tokens one picks, and how good it is.

All arrays are (N,), one entry per token.
"""

from __future__ import annotations

import numpy as np


def loss_gap(easy: np.ndarray, loss: np.ndarray) -> float:
    """Mean loss of the tokens that are not ``easy`` (N,) bool minus mean loss of those that are, in nats."""
    return float(loss[~easy].mean() - loss[easy].mean())


def most_confident(score: np.ndarray, count: int) -> np.ndarray:
    """Mask (N,) of the ``count`` tokens with the highest scores; among equal scores the earlier ones."""
    mask = np.zeros(len(score), dtype=bool)
    mask[np.argsort(-score, kind="stable")[:count]] = True
    return mask


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """The probability that a positive token scores above a negative one (Mann-Whitney), ties counting half.

    NaN where all tokens are of one kind.
    """
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if not positives or not negatives:
        return float("nan")
    _, place, ties = np.unique(score, return_inverse=True, return_counts=True)
    ranks = (ties.cumsum() - (ties - 1) / 2)[place]  # as scipy.stats.rankdata, whose import takes a second
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def aurc(score: np.ndarray, risk: np.ndarray) -> float:
    """Area under the risk-coverage curve: the mean risk of the n most confident tokens, averaged over n.

    Lower is better.

    ``risk`` is the error of each token, 0 or 1, or nats. Of equal scores the earlier token counts as more
    confident.
    """
    ordered = risk[np.argsort(-score, kind="stable")].astype(np.float64)
    return float((ordered.cumsum() / np.arange(1, len(ordered) + 1)).mean())


def classification_quality(called: np.ndarray, positive: np.ndarray) -> dict[str, float]:
    """Accuracy, balanced accuracy and F1 of the decisions ``called`` (N,) bool to call a token positive.

    Beside them stands what constant decisions reach: ``majority_accuracy`` by always the commoner class,
    ``majority_f1`` by always positive, which is the best constant decision for F1.
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
