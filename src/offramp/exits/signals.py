"""Confidence signals: what may be known of a token at an exit. Every signal is oriented: higher = surer to leave."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from offramp.errors import UserError
from offramp.vocabulary import LEARNED

Array = TypeVar("Array", np.ndarray, Tensor)


@dataclass(frozen=True)
class Signal:
    """A score of tokens from one exit's label-free columns (``States.label_free``), and what it costs to have it."""

    score: Callable[[Mapping[str, Array]], Array]
    reads: Literal["readout", "layer", "earlier readouts"]
    """The exit's own softmax; the states around the block's last layer; the argmax of every exit so far."""
    source: str
    needs_target: bool = False

    @property
    def reads_out(self) -> bool:
        return self.reads != "layer"

    def flops(self, width: int, vocab_size: int) -> int:
        """Floating-point operations per token asked (a multiply-add counts two; reductions over logits count nothing)."""
        return 2 * width * vocab_size if self.reads_out else 6 * width  # the cosine's three inner products


def _margin_prob(columns: Mapping[str, Array]) -> Array:
    """p_(1) - p_(2): the second probability is the first times e^-(logit margin)."""
    library = torch if isinstance(columns["margin"], Tensor) else np
    return -columns["max_prob"] * library.expm1(-columns["margin"])


SIGNALS = {
    "max_prob": Signal(lambda c: c["max_prob"], "readout", "seeds 003, 004; CALM, arXiv 2207.07061"),
    "margin_prob": Signal(_margin_prob, "readout", "CALM, arXiv 2207.07061"),
    "margin": Signal(lambda c: c["margin"], "readout", "seed 004"),
    "entropy": Signal(lambda c: -c["entropy"], "readout", "BranchyNet, arXiv 1709.01686"),
    "max_logit": Signal(lambda c: c["max_logit"], "readout", "seed 004"),
    "max_minus_mean": Signal(lambda c: c["max_logit"] - c["mean_logit"], "readout", "seed 004"),
    "saturation": Signal(lambda c: c["saturation"], "layer", "CALM, arXiv 2207.07061"),
    "patience": Signal(lambda c: c["patience"], "earlier readouts", "PABEE, arXiv 2006.04152"),
}
"""Signals that can be had at inference."""

ORACLES = {
    "correct_prob": Signal(
        lambda c: c["correct_prob"], "readout", "seed 004 (there called softmax confidence)", True
    )
}
"""Signals that need the target: for training labels and controls only."""


def known_signals(num_exits: int) -> list[str]:
    """Names of the signals that say something with that many exits, full depth included."""
    return [name for name in SIGNALS if num_exits > 2 or name != "patience"]


def raw_signal(name: str, columns: Mapping[str, Array]) -> Array:
    """The uncalibrated signal (N,) of label-free columns (N,).

    UserError for an unknown name, an oracle, or a column that is missing.
    """
    if name in ORACLES:
        raise UserError(
            f"exits.confidence = {name!r} needs the target, which inference does not have: it is an oracle, for labels and "
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
            f"exits.confidence = {name!r} needs the statistic {missing}; these states have {', '.join(columns)}. Run `dvc repro collect`"
        ) from None
