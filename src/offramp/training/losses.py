"""Losses over the vocabulary that never hold more than one chunk of logits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK = 128
"""Tokens whose logits exist at one time: on CPUs 64 to 128 are fastest; larger chunks leave the cache."""
LIKELY = 16
"""Entries of a vocabulary that full depth holds likeliest at a token, none of which a sample leaves out."""
DRAWN = 2048
"""Entries of a sample that are drawn to stand for all that are likely nowhere."""


def total_nll(inputs: Tensor, matrix: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood in nats, a float32 sum, of targets (N,) under softmax(inputs @ matrix.T).

    inputs (N, D), matrix (V, D). Differentiable in both. Uses torch's fused chunked loss (torch >= 2.13) and
    recomputed chunks before that.
    """
    if torch.is_autocast_enabled(inputs.device.type):
        dtype = torch.get_autocast_dtype(inputs.device.type)
        inputs, matrix = inputs.to(dtype), matrix.to(dtype)
    if not hasattr(F, "linear_cross_entropy"):
        pieces = zip(inputs.split(CHUNK), targets.split(CHUNK))
        return torch.stack(
            [checkpoint(_chunk_nll, x, matrix, y, use_reentrant=False) for x, y in pieces]
        ).sum()
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=CHUNK)
    # A reduced loss has its gradient ready after the forward pass, but adds up in the dtype of its inputs.
    reduction = "sum" if inputs.dtype == torch.float32 else "none"
    return F.linear_cross_entropy(inputs, matrix, targets, reduction=reduction, options=options).float().sum()


def total_divergences(
    inputs: list[Tensor], matrices: list[Tensor], log_weights: Tensor | None = None
) -> list[Tensor]:
    """KL(last || exit) in nats, float32 sums over tokens, of the predictions softmax(inputs_k @ matrices_k.T)
    of all exits k.

    inputs (N, D) and matrices (V, D), one per exit; one sum for every exit but the last. Differentiable in
    the inputs of those exits; the last exit and all matrices are taken as given. Where the matrices are rows
    of larger ones (``VocabularySample``), ``log_weights`` (V,) are the logarithms of how many entries each
    row stands for.
    """
    device = inputs[0].device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        inputs, matrices = ([part.to(dtype) for part in parts] for parts in (inputs, matrices))
    return list(_Divergences.apply(matrices, log_weights, *inputs).unbind())


class _Divergences(torch.autograd.Function):
    """Finds the gradients in the forward pass, while the logits of a chunk exist."""

    @staticmethod
    def forward(ctx: Any, matrices: list[Tensor], log_weights: Tensor | None, *inputs: Tensor) -> Tensor:
        *exits, last = inputs
        totals = torch.zeros(len(exits), device=last.device)
        gradients = [torch.empty_like(x) for x in exits]
        for start in range(0, len(last), CHUNK):
            chunk = slice(start, start + CHUNK)
            wanted = _log_probabilities(last[chunk], matrices[-1], log_weights)
            p = wanted.exp()
            for exit, (x, matrix) in enumerate(zip(exits, matrices)):
                predicted = _log_probabilities(x[chunk], matrix, log_weights)
                totals[exit] += (p * (wanted - predicted)).sum()
                slope = predicted.exp_().sub_(p)  # dKL / dlogits = softmax - p
                gradients[exit][chunk] = slope.to(x.dtype) @ matrix
        ctx.save_for_backward(*gradients)
        return totals

    @staticmethod
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, ...]:
        gradients = (scale * gradient for scale, gradient in zip(given, ctx.saved_tensors))
        return (None, None, *gradients, None)


def _log_probabilities(inputs: Tensor, matrix: Tensor, log_weights: Tensor | None) -> Tensor:
    logits = (inputs @ matrix.T).float()
    return torch.log_softmax(logits if log_weights is None else logits.add_(log_weights), dim=-1)


@dataclass(frozen=True)
class VocabularySample:
    """Entries of a vocabulary that stand for all of it: some for themselves, a random few for the rest.

    Softmaxes over the sample, with every entry weighted by how many it stands for, take the place of those
    over the whole vocabulary. Where two predictions are equal, their divergence over any sample is 0 and so
    is its gradient: the same sample for both keeps its noise out of where training ends.
    """

    entries: Tensor
    """(C,) in increasing order."""
    log_weights: Tensor | None
    """(C,): 0 for entries that stand for themselves; None where all entries are there."""

    @classmethod
    def draw(cls, certain: Tensor, generator: torch.Generator, drawn: int = DRAWN) -> VocabularySample:
        """All entries that the mask ``certain`` (V,) says, and ``drawn`` of the others, all equally likely.

        The generator is one of the CPU.
        """
        others = (~certain).nonzero().flatten()
        if len(others) <= drawn:
            return cls(torch.arange(len(certain), device=certain.device), None)
        picked = others[torch.randperm(len(others), generator=generator)[:drawn].to(others.device)]
        kept, weights = certain.clone(), torch.zeros(len(certain), device=certain.device)
        kept[picked] = True
        weights[picked] = math.log(len(others) / drawn)
        entries = kept.nonzero().flatten()
        return cls(entries, weights[entries])

    def rows(self, matrix: Tensor) -> Tensor:
        """The rows (C, D) of a readout matrix (V, D)."""
        return matrix if self.log_weights is None else matrix[self.entries]


@torch.no_grad()
def likeliest(inputs: Tensor, matrix: Tensor) -> Tensor:
    """The LIKELY entries (N, LIKELY) with the largest logits inputs @ matrix.T, of inputs (N, D); or all V,
    where the matrix (V, D) has no more."""
    count = min(LIKELY, len(matrix))
    return torch.cat([(x @ matrix.T).topk(count).indices for x in inputs.split(CHUNK)])


def _chunk_nll(inputs: Tensor, matrix: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy((inputs @ matrix.T).float(), targets, reduction="sum")
