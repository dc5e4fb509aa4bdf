"""Translators: what maps the normed state at an early exit to one that the model's own head can read.

They stand between the model's final norm and its head. A logit lens has nothing there; an affine map makes it
a tuned lens (arXiv 2303.08112) or a linear shortcut (arXiv 2303.09435), an MLP an exit of EE-LLM (arXiv
2312.04916). All add their part to the normed state and are made as the identity, which is the logit lens;
``training.least_squares`` gives the linear ones a better start. Behind the norm, an affine map of normed
states can be any affine map, its scale included: ahead of it, the norm would undo the scale, and with it how
sure an exit is. The other kind of EE-LLM, an extra transformer layer, sees more than one state and is no
function of this module: see ``models.blockwise.Blockwise.exit_layer``.

Shapes: D width, R rank, or inner width of the MLP.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KINDS = ("identity", "affine", "low_rank", "mlp")
BLOCK = "block"
"""The kind of an extra transformer layer, which is no function of this module."""


LINEAR = ("affine", "low_rank")
"""The kinds of affine maps, which have a closed form."""


class Identity(nn.Identity):
    """y as it is: the logit lens."""

    flops = 0


class Translator(nn.Module):
    """y + f(y) to begin with, where f starts as zero because its last matrix does."""

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
    """y + A y + b."""

    def __init__(self, width: int):
        super().__init__(nn.Linear(width, width))

    def forward(self, y: Tensor) -> Tensor:
        return y + self.last(y)


class LowRank(Translator):
    """g * y + U V y + b, with V (R, D), U (D, R) and a factor g per dimension, which starts as 1.

    Without g, the map would have to spend its rank on taking the identity away.
    """

    def __init__(self, width: int, rank: int):
        super().__init__(nn.Linear(rank, width))
        self.first = nn.Linear(width, rank, bias=False)
        self.factor = nn.Parameter(torch.ones(width))

    def forward(self, y: Tensor) -> Tensor:
        return self.factor * y + self.last(self.first(y))


class MLP(Translator):
    """y + W2 (silu(G n) * U n), where n is y over its root mean square; G and U (R, D), W2 (D, R)."""

    def __init__(self, width: int, rank: int):
        super().__init__(nn.Linear(rank, width, bias=False))
        self.first = nn.Linear(width, 2 * rank, bias=False)  # gate and up projection side by side

    def forward(self, y: Tensor) -> Tensor:
        gate, up = self.first(F.rms_norm(y, y.shape[-1:])).chunk(2, dim=-1)
        return y + self.last(F.silu(gate) * up)


def make_translator(kind: str, width: int, rank: int | None = None) -> Identity | Translator:
    """A translator of normed states (..., ``width``) of one of KINDS.

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
