"""How the weights of the character models are drawn, as the report ``character-systems`` drew them."""

from __future__ import annotations

from torch import nn

EMBEDDING_STD = 0.02


def truncated_normal(model: nn.Module, linear_std: float) -> None:
    """Draw linear weights from a truncated normal(0, ``linear_std``) and embeddings from (0, 0.02), in place.

    Norms and the rest stay as built; nothing has a bias. The report draws linear weights by 1 / sqrt(width),
    and by 0.02 where it grows models, examines their layers one by one and asks for early exits.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=linear_std)
        elif isinstance(module, nn.Embedding):
            nn.init.trunc_normal_(module.weight, std=EMBEDDING_STD)
