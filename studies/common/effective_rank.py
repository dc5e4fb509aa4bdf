"""Effective rank: how many directions a set of vectors fills, as the exponential of the entropy of its
singular values.

With S the singular values of the matrix whose rows are N vectors of width D, p = S / sum S and
ER = exp(-sum p ln p), from 1 to D (Roy and Vetterli, 2007). The report context-vectors gives ER / D of the
matrix as it is: a mean far from zero is then one direction among the others, so ``centred`` removes it
first. A number says little without what vectors without any context would give: ``nulls``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from offramp.errors import UserError

ROWS = 10_000
"""Vectors looked at, as in the report; drawn at random where there are more."""


def effective_rank(vectors: Tensor, centred: bool = False, seed: int = 0) -> float:
    """ER of vectors (N, D), in directions.

    UserError for fewer than two vectors, and for vectors that are all zero, or once centred.
    """
    if vectors.ndim != 2 or len(vectors) < 2:
        raise UserError(
            f"effective rank: vectors of shape {tuple(vectors.shape)}; give a matrix of at least two rows"
        )
    rows = _some(vectors, seed).double()
    if centred:
        rows = rows - rows.mean(dim=0)
    # Eigenvalues of the D x D product are the squared singular values, at a cost that does not grow with N
    # twice.
    singular = torch.linalg.eigvalsh(rows.T @ rows).clamp_min(0).sqrt()
    singular = singular[singular > singular.max() * 1e-7]
    if not len(singular):
        raise UserError(
            "effective rank: all vectors are zero once centred; a constant has no rank"
            if centred
            else "effective rank: all vectors are zero; a constant has no rank"
        )
    p = singular / singular.sum()
    return float(torch.exp(-(p * p.log()).sum()))


def rank_share(vectors: Tensor, centred: bool = False, seed: int = 0) -> float:
    """ER as a share of the width, which the report gives as a percentage."""
    return effective_rank(vectors, centred, seed) / vectors.shape[1]


def nulls(vectors: Tensor, token_only: Tensor, seed: int = 0) -> dict[str, float]:
    """Shares that say nothing of context: those of Gaussian vectors of the same shape (N, D), and of features
    of each token alone, ``token_only`` (N, D)."""
    generator = torch.Generator().manual_seed(seed)
    random = torch.randn(min(len(vectors), ROWS), vectors.shape[1], generator=generator)
    return {
        "random": rank_share(random),
        "random.centred": rank_share(random, centred=True),
        "token_only": rank_share(token_only, seed=seed),
        "token_only.centred": rank_share(token_only, True, seed),
    }


def _some(vectors: Tensor, seed: int) -> Tensor:
    if len(vectors) <= ROWS:
        return vectors
    return vectors[torch.randperm(len(vectors), generator=torch.Generator().manual_seed(seed))[:ROWS]]
