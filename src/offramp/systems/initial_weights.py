"""Initial weights of the character-level systems of seed 001."""

from __future__ import annotations

from torch import nn

EMBEDDING_STD = 0.02


def truncated_normal(model: nn.Module, linear_std: float) -> None:
    """Linear weights ~ truncated normal(0, ``linear_std``), embeddings ~ (0, 0.02); norms and the rest stay as built.

    Experiments 1-4, 10 and 11 used 1 / sqrt(width) for the linear weights, experiments 5-9 0.02. Nothing has a bias.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=linear_std)
        elif isinstance(module, nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=EMBEDDING_STD)
