"""What a model is trained towards and how it is then used: plain next-token loss, layer supervision, iterated refinement.

An objective is independent of who optimises: one module in a loop of one's own, or all seeds together (``training.ensemble``).

    final      logits of the last block                                        L = CE_K
    layered    logits of every block, by the model's own readouts (LPT)        L = sum_k w_k CE_k
    iterated   several passes over the same tokens, the last states carried    one update per pass, states detached (IRT)

Shapes: B sequences, T positions, D width, V symbols, K blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

Carried = tuple[Tensor, ...]
"""What an update hands to the next one on the same batch; empty at the first."""


@dataclass(frozen=True)
class Objective:
    """A loss per update and the logits at evaluation.

    ``loss(model, tokens, targets, carried)`` returns a scalar mean in nats and what the next of the ``segments`` updates
    on this batch starts from, which comes without its graph. ``logits(model, tokens)`` (B, T, V) is how the model is used.
    """

    loss: Callable[[nn.Module, Tensor, Tensor, Carried], tuple[Tensor, Carried]]
    logits: Callable[[nn.Module, Tensor], Tensor]
    segments: int = 1


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over all positions in nats; logits (..., V), targets (...)."""
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


def from_logits(logits: Callable[[nn.Module, Tensor], Tensor]) -> Objective:
    """One update per batch on the logits that evaluation uses."""
    return Objective(lambda model, tokens, targets, carried: (cross_entropy(logits(model, tokens), targets), ()), logits)
