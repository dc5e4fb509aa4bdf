"""What a model is trained towards and how it is then used: plain next-token loss, layer supervision, passes over one batch.

An objective is independent of who optimises: one module in a loop of one's own, or all seeds together (``training.ensemble``).

    final                        L = CE_K
    sum, weighted, normalised    L = sum_k w_k CE_k with w_k = 1, k, 1 / K           layer supervision (LPT of seed 001)
    repeated                     L = CE_K, several updates per batch: what more passes over a batch do by themselves

with CE_k from the logits after block k by the model's own readout there. States that are refined in several updates per batch
are in ``training.segments``, as is iterated refinement, whose model is ``models.iterated``.

Shapes: B sequences, T positions, V symbols, K blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp.errors import UserError
from offramp.models.blockwise import Blockwise

Carried = tuple[Tensor, ...]
"""What an update hands to the next one on the same batch; empty at the first."""

OBJECTIVES = ("final", "sum", "weighted", "normalised")


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
    return Objective(
        lambda model, tokens, targets, carried: (cross_entropy(logits(model, tokens), targets), ()), logits
    )


def repeated(objective: Objective, updates: int) -> Objective:
    """The same loss ``updates`` times on every batch, an optimiser step after each; nothing is carried."""
    return replace(objective, segments=updates)


def last_logits(model: Blockwise, tokens: Tensor) -> Tensor:
    """Logits (B, T, V) after the last block."""
    last = model.config.num_blocks - 1
    return model.logits(last, model(tokens)[last])


def block_losses(model: Blockwise, tokens: Tensor, targets: Tensor) -> Tensor:
    """Mean loss (K,) in nats of the logits after every block."""
    return torch.stack(
        [cross_entropy(model.logits(exit, x), targets) for exit, x in enumerate(model(tokens))]
    )


def block_weights(name: str, blocks: int) -> list[float]:
    """w_k of layer supervision. UserError for a name that is not among OBJECTIVES."""
    found = {
        "final": [0.0] * (blocks - 1) + [1.0],
        "sum": [1.0] * blocks,
        "weighted": [float(place) for place in range(1, blocks + 1)],
        "normalised": [1 / blocks] * blocks,
    }
    if name not in found:
        raise UserError(f"objective = {name!r} does not exist; choose from {', '.join(OBJECTIVES)}")
    return found[name]


def supervised(weights: Sequence[float]) -> Objective:
    """Weighted losses of all blocks; evaluation uses the last. ``weights`` of length K; a block of weight 0 is not read out."""

    def loss(model: Blockwise, tokens: Tensor, targets: Tensor, carried: Carried) -> tuple[Tensor, Carried]:
        states = model(tokens)
        if len(weights) != len(states):
            raise UserError(f"weights: {len(weights)} given for {len(states)} blocks; give one per block")
        return sum(
            weight * cross_entropy(model.logits(exit, x), targets)
            for exit, (weight, x) in enumerate(zip(weights, states))
            if weight
        ), ()

    return Objective(loss, last_logits)


def named(name: str, blocks: int) -> Objective:
    """The objective ``name`` of OBJECTIVES for a model of ``blocks`` blocks, each with an exit."""
    return supervised(block_weights(name, blocks))
