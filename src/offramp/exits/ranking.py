"""What a ranking of tokens by confidence picks, and how far apart it puts their losses."""

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
