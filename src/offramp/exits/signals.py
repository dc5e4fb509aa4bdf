"""Confidence signals: numbers that say of a token at an exit how sure it is to leave there.

Every signal is oriented alike: the higher, the surer. All of them can be had at inference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from offramp.errors import UserError
from offramp.vocabulary import LEARNED, ORACLES

Array = TypeVar("Array", np.ndarray, Tensor)
"""Signals are computed of cached states in numpy and of a running model in torch."""


@dataclass(frozen=True)
class Signal:
    """How a signal is computed, and from what."""

    score: Callable[[Mapping[str, Any]], Any]
    """From an exit's label-free columns (N,), numpy arrays or tensors, to the signal (N,)."""
    reads: Literal["readout", "layer", "earlier readouts"]
    """The exit's softmax; the states around the block's last layer; or the argmax of every exit so far."""

    @property
    def reads_out(self) -> bool:
        """Whether the exit has to be read out for it."""
        return self.reads != "layer"

    def flops(self, width: int, vocab_size: int) -> int:
        """FLOPs per token that is asked (a multiply-add counts two; reductions over logits count nothing)."""
        return 2 * width * vocab_size if self.reads_out else 6 * width  # the cosine's three inner products


def _margin_prob(columns: Mapping[str, Array]) -> Array:
    """The largest probability minus the second, which is the largest times e^-(margin of logits)."""
    library = torch if isinstance(columns["margin"], Tensor) else np
    return -columns["max_prob"] * library.expm1(-columns["margin"])


SIGNALS = {
    "max_prob": Signal(lambda c: c["max_prob"], "readout"),  # CALM, arXiv 2207.07061
    "margin_prob": Signal(_margin_prob, "readout"),  # CALM
    "margin": Signal(lambda c: c["margin"], "readout"),  # report loss-prediction
    "entropy": Signal(lambda c: -c["entropy"], "readout"),  # BranchyNet, arXiv 1709.01686
    "max_logit": Signal(lambda c: c["max_logit"], "readout"),  # report loss-prediction
    "max_minus_mean": Signal(lambda c: c["max_logit"] - c["mean_logit"], "readout"),  # report loss-prediction
    "saturation": Signal(lambda c: c["saturation"], "layer"),  # CALM
    "patience": Signal(lambda c: c["patience"], "earlier readouts"),  # PABEE, arXiv 2006.04152
}
"""Every signal but that of the trained exit classifier, by name."""


def known_signals(num_exits: int) -> list[str]:
    """Names of the signals that say something in a model with so many exits, full depth included."""
    return [name for name in SIGNALS if num_exits > 2 or name != "patience"]


def raw_signal(name: str, columns: Mapping[str, Array]) -> Array:
    """The signal ``name`` (N,), not yet calibrated, from an exit's label-free columns (N,).

    UserError for an unknown name, an oracle, or a column that is missing.
    """
    if name in ORACLES:
        raise UserError(
            f"exits.confidence = {name!r} needs the target, which inference does not have: it is an oracle, "
            "for labels and "
            f"controls only; use {LEARNED}, {', '.join(SIGNALS)}"
        )
    if name not in SIGNALS:
        raise UserError(
            f"exits.confidence = {name!r} is not a signal; known: {LEARNED}, {', '.join(SIGNALS)}"
        )
    try:
        return SIGNALS[name].score(columns)
    except KeyError as missing:
        raise UserError(
            f"exits.confidence = {name!r} needs the statistic {missing}; these states have "
            f"{', '.join(columns)}. Run `dvc repro collect`"
        ) from None
