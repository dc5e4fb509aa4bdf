"""Confidence signals: what a readout's statistics say about leaving. Every signal is oriented: higher = surer."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
from torch import Tensor

from offramp.errors import UserError

Array = TypeVar("Array", np.ndarray, Tensor)

SIGNALS = {
    "max_prob": lambda s: s["max_prob"],
    "max_logit": lambda s: s["max_logit"],
    "max_minus_mean": lambda s: s["max_logit"] - s["mean_logit"],
    "margin": lambda s: s["margin"],
    "entropy": lambda s: -s["entropy"],
}
"""Signals computed from one readout's label-free statistics (STATISTICS), as functions of a mapping of them."""

LEARNED = "learned"
"""The signal of the trained exit classifier."""


def raw_signal(name: str, statistics: dict[str, Array]) -> Array:
    """The uncalibrated signal (N,); raises UserError for a name that is not known."""
    if name not in SIGNALS:
        raise UserError(f"exits.confidence = {name!r} is not a signal; known: {LEARNED}, {', '.join(SIGNALS)}")
    return SIGNALS[name](statistics)
