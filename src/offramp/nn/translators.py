"""Translators: what maps the state at an early exit to one that the model's own final norm and head can read.

A logit lens reads the state as it is; a trained affine map makes it a tuned lens (arXiv 2303.08112), a norm
and an MLP an exit of EE-LLM (arXiv 2312.04916). All add their part to the state and begin as the identity, so
training starts from the logit lens. The other kind of EE-LLM, an extra transformer layer, sees more than one
state and is no function of this module: see ``models.blockwise.Blockwise.exit_layer``.

Shapes: D width, R rank, or inner width of the MLP.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

KINDS = ("identity", "affine", "low_rank", "mlp")
BLOCK = "block"
"""The kind of an extra transformer layer, which is no function of this module."""


class Identity(nn.Identity):
    """x as it is: the logit lens."""

    flops = 0


class Translator(nn.Module):
    """x + f(x), where f starts as zero because its last matrix does."""

    def __init__(self, last: nn.Linear):
        super().__init__()
        self.last = last
        for parameter in last.parameters():
            nn.init.zeros_(parameter)

    @property
    def flops(self) -> int:
        """FLOPs of one token's matrix products (a multiply-add counts two)."""
        return 2 * sum(parameter.numel() for parameter in self.parameters() if parameter.ndim == 2)


class Affine(Translator):
    """x + A x + b (tuned lens)."""

    def __init__(self, width: int):
        super().__init__(nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(x)


class LowRank(Translator):
    """x + U V x, with V (R, D) and U (D, R)."""

    def __init__(self, width: int, rank: int):
        super().__init__(nn.Linear(rank, width, bias=False))
        self.first = nn.Linear(width, rank, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.last(self.first(x))


class MLP(Translator):
    """x + W2 (silu(G n) * U n), where n is x over its root mean square; G and U (R, D), W2 (D, R)."""

    def __init__(self, width: int, rank: int):
        super().__init__(nn.Linear(rank, width, bias=False))
        self.first = nn.Linear(width, 2 * rank, bias=False)  # gate and up projection side by side

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.first(F.rms_norm(x, x.shape[-1:])).chunk(2, dim=-1)
        return x + self.last(F.silu(gate) * up)


def make_translator(kind: str, width: int, rank: int | None = None) -> Identity | Translator:
    """A translator of states (..., ``width``) of one of KINDS.

    ``rank`` is that of low_rank, and the inner width of mlp; the other kinds have none. ValueError where it
    is missing.
    """
    if kind == "identity":
        return Identity()
    if kind == "affine":
        return Affine(width)
    if rank is None:
        raise ValueError(f"a translator of kind {kind} needs a rank")
    return {"low_rank": LowRank, "mlp": MLP}[kind](width, rank)
