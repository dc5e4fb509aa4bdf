"""Losses over the vocabulary that never hold more than one chunk of logits."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK = 128
"""Tokens whose logits exist at one time: on CPUs 64 to 128 are fastest; larger chunks leave the cache."""


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


def total_divergences(inputs: list[Tensor], matrices: list[Tensor]) -> list[Tensor]:
    """KL(last || exit) in nats, float32 sums over tokens, of the predictions softmax(inputs_k @ matrices_k.T)
    of all exits k.

    inputs (N, D) and matrices (V, D), one per exit; one sum for every exit but the last. Differentiable in
    the inputs of those exits; the last exit and all matrices are taken as given.
    """
    device = inputs[0].device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        inputs, matrices = ([part.to(dtype) for part in parts] for parts in (inputs, matrices))
    return list(_Divergences.apply(matrices, *inputs).unbind())


class _Divergences(torch.autograd.Function):
    """Finds the gradients in the forward pass, while the logits of a chunk exist."""

    @staticmethod
    def forward(ctx: Any, matrices: list[Tensor], *inputs: Tensor) -> Tensor:
        *exits, last = inputs
        totals = torch.zeros(len(exits), device=last.device)
        gradients = [torch.empty_like(x) for x in exits]
        for start in range(0, len(last), CHUNK):
            chunk = slice(start, start + CHUNK)
            wanted = _log_probabilities(last[chunk], matrices[-1])
            p = wanted.exp()
            for exit, (x, matrix) in enumerate(zip(exits, matrices)):
                predicted = _log_probabilities(x[chunk], matrix)
                totals[exit] += (p * (wanted - predicted)).sum()
                slope = predicted.exp_().sub_(p)  # dKL / dlogits = softmax - p
                gradients[exit][chunk] = slope.to(x.dtype) @ matrix
        ctx.save_for_backward(*gradients)
        return totals

    @staticmethod
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *(scale * gradient for scale, gradient in zip(given, ctx.saved_tensors)), None)


def _log_probabilities(inputs: Tensor, matrix: Tensor) -> Tensor:
    return torch.log_softmax((inputs @ matrix.T).float(), dim=-1)


def _chunk_nll(inputs: Tensor, matrix: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy((inputs @ matrix.T).float(), targets, reduction="sum")
