"""Losses over the vocabulary that never hold more than one chunk of logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK = 128
"""Tokens whose logits exist at one time: on a CPU chunks of 64 to 128 are fastest, since larger ones leave the cache."""


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
        return torch.stack([checkpoint(_chunk_nll, x, matrix, y, use_reentrant=False) for x, y in pieces]).sum()
    options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=CHUNK)
    # A reduced loss has its gradient ready after the forward pass, but adds up in the dtype of its inputs.
    reduction = "sum" if inputs.dtype == torch.float32 else "none"
    return F.linear_cross_entropy(inputs, matrix, targets, reduction=reduction, options=options).float().sum()


def _chunk_nll(inputs: Tensor, matrix: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy((inputs @ matrix.T).float(), targets, reduction="sum")
