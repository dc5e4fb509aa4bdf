"""Iterated refinement: one stack of blocks run several times, its last states added to the next input.

    s_0 = learned, per position;    h_j = blocks(E(x) + s_{j-1}),    logits_j = readout(h_j),    s_j = h_j

With ``systems.deep_supervision`` every pass has its loss and its optimiser step, and s_j goes on without its
graph; ``unrolled`` keeps the graph, so that one update sees all passes. The report ``character-systems``
calls the former iterative refinement training.

Shapes: B sequences, T positions, D width, V symbols.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from offramp.models.blockwise import Blockwise

INITIAL_STD = 0.02


class IteratedLM(nn.Module):
    """Any block-wise model as one pass of several; adds one learned state per position."""

    def __init__(self, model: Blockwise):
        super().__init__()
        self.model = model
        self.initial = nn.Parameter(INITIAL_STD * torch.randn(model.config.window, model.config.width))

    def forward(self, tokens: Tensor, states: tuple[Tensor, ...] = ()) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Logits (B, T, V) of one pass over tokens (B, T), and the state (B, T, D) for the next pass."""
        x = self.model.embed(tokens) + (states[0] if states else self.initial[: tokens.shape[1]])
        for block in range(self.model.config.num_blocks):
            x = self.model.run_block(block, x)
        return self.model.logits(block, x), (x,)


def unrolled(model: IteratedLM, tokens: Tensor, passes: int) -> Tensor:
    """Logits (B, T, V) of the last of ``passes`` passes, differentiable through all of them."""
    logits, states = model(tokens)
    for _ in range(passes - 1):
        logits, states = model(tokens, states)
    return logits
