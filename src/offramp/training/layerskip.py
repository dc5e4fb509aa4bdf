"""What LayerSkip (arXiv 2404.16710) adds to joint training: layer dropout, and a curriculum of exits.

Both are functions of random seed and step alone, so that a resumed run and every process of a parallel one do
the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from offramp.models.blockwise import Blockwise


def dropout_probabilities(num_layers: int, maximum: float) -> list[float]:
    """The probability of leaving out each layer: 0 for the first, rising exponentially to ``maximum``.

    It is the paper's D(l) = exp(l ln 2 / (L - 1)) - 1, scaled. The paper's rise over time, meant for training
    from scratch, is left out.
    """
    return [maximum * (2 ** (layer / max(1, num_layers - 1)) - 1) for layer in range(num_layers)]


def layers_run(probabilities: Sequence[float], seed: int, step: int) -> list[bool]:
    """Which layers run at ``step``; the others are left out for the whole batch.

    This is stochastic depth (arXiv 1603.09382).
    """
    generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
    draws = torch.rand(len(probabilities), generator=generator)
    return [draw >= probability for draw, probability in zip(draws.tolist(), probabilities)]


def states_with(model: Blockwise, tokens: Tensor, run: Sequence[bool]) -> list[Tensor]:
    """Hidden states (B, T, D) after every block, where layers that do not ``run`` hand on what they get."""
    x, states, which = model.embed(tokens), [], iter(run)
    for block in model.layers:
        for layer in block:
            if next(which):
                x = model.run_layer(layer, x)
        states.append(x)
    return states


def exits_on(curriculum: str | None, exits: Sequence[int], step: int, steps: int) -> list[int]:
    """The exits whose losses count at ``step`` of ``steps``; the last one always does.

    rotational: one of the others in turn. gradual: one more of them after every 1/2K of the training, from
    the deepest to the shallowest of all K exits, so that all are on for the second half.
    """
    *earlier, last = exits
    if curriculum == "rotational" and earlier:
        earlier = [earlier[step % len(earlier)]]
    if curriculum == "gradual":
        earlier = earlier[max(0, len(earlier) - 2 * len(exits) * step // steps) :]
    return [*earlier, last]


def handed_on(weights: Mapping[int, float], on: Sequence[int]) -> dict[int, float]:
    """The weights of the exits that are on, which get those of the others in proportion to their own."""
    present = sum(weights[exit] for exit in on)
    scale = sum(weights.values()) / present if present else 1.0
    return {exit: weights[exit] * scale for exit in on}
