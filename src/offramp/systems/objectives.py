"""What a model is trained towards, and how it is then used: next-token loss, or supervision of every layer.

An objective is independent of who optimises: one model in a loop, or several together (``systems.ensemble``).

    final         L = CE_K
    sum           L = sum_k CE_k                all blocks supervised, as the report ``character-systems`` did
    weighted      L = sum_k k CE_k
    normalised    L = sum_k CE_k / K
    repeated      L = CE_K, several updates per batch: what more passes over a batch do by themselves

with CE_k from the logits after block k by the model's own readout there. States that are refined in several
updates per batch are in ``systems.deep_supervision``.

Shapes: B sequences, T positions, V symbols, K blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from offramp.errors import UserError
from offramp.models.blockwise import Blockwise

Carried = tuple[Tensor, ...]
"""What an update hands to the next one on the same batch; empty at the first."""

OBJECTIVES = ("final", "sum", "weighted", "normalised")


@dataclass(frozen=True)
class Objective:
    """A loss per update, and the logits at evaluation."""

    loss: Callable[[Any, Tensor, Tensor, Carried], tuple[Tensor, Carried]]
    """``loss(model, tokens, targets, carried)``: a scalar mean in nats, and what the next update on this
    batch starts from, without its graph. The model is of the kind that the objective is for."""
    logits: Callable[[Any, Tensor], Tensor]
    """``logits(model, tokens)``, (B, T, V): how the model is used."""
    segments: int = 1
    """Updates on every batch."""


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean over all positions in nats; logits (..., V), targets (...)."""
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten())


def from_logits(logits: Callable[[Any, Tensor], Tensor]) -> Objective:
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
    weights = {
        "final": [0.0] * (blocks - 1) + [1.0],
        "sum": [1.0] * blocks,
        "weighted": [float(place) for place in range(1, blocks + 1)],
        "normalised": [1 / blocks] * blocks,
    }
    if name not in weights:
        raise UserError(f"objective = {name!r} does not exist; choose from {', '.join(OBJECTIVES)}")
    return weights[name]


def supervised(weights: Sequence[float]) -> Objective:
    """The blocks' losses summed by ``weights`` (one per block); evaluation uses the last block.

    A block of weight 0 is not read out. The loss raises UserError for a model of another number of blocks.
    """

    def loss(model: Blockwise, tokens: Tensor, targets: Tensor, carried: Carried) -> tuple[Tensor, Carried]:
        states = model(tokens)
        if len(weights) != len(states):
            raise UserError(f"weights: {len(weights)} given for {len(states)} blocks; give one per block")
        total = sum(
            weight * cross_entropy(model.logits(exit, x), targets)
            for exit, (weight, x) in enumerate(zip(weights, states))
            if weight
        )
        return torch.as_tensor(total), ()

    return Objective(loss, last_logits)


def named(name: str, blocks: int) -> Objective:
    """The objective ``name`` of OBJECTIVES for a model of ``blocks`` blocks, each with an exit."""
    return supervised(block_weights(name, blocks))
