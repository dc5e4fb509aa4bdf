"""Compressive memory of earlier windows: Infini-attention (arXiv 2404.07143) with the plain additive rule.

Per head, with s(u) = elu(u) + 1 and the memory M (E, E), z (E,) of everything written so far:

    read     r_t = s(q_t) M / ( s(q_t) . z + 1e-6 )
    mix      g r_t + (1 - g) local_t                      g = sigmoid(gate), one scalar per head, at first 1/2
    write    M <- M + sum_t s(k_t)^T v_t,   z <- z + sum_t s(k_t)

``local`` is causal softmax attention within the window. A module reads the memory it is given and returns
another that also holds its window; whoever gives it the memory of earlier windows alone cannot see the
future. A memory comes in detached: keys and values learn through local attention only.

Shapes: B sequences, T positions, H heads, E width of a head, D width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp.nn.layers import TransformerLayer, attend, require_heads, rotate

EPSILON = 1e-6


class Memory(NamedTuple):
    """What earlier windows have written."""

    matrix: Tensor
    """(B, H, E, E)"""
    normaliser: Tensor
    """(B, H, E)"""

    def keep(self, rows: Tensor) -> Memory:
        """The same memory, emptied where ``rows`` (B,) is false."""
        held = rows.to(self.matrix.dtype)
        return Memory(self.matrix * held[..., None, None, None], self.normaliser * held[..., None, None])


def empty_memory(batch: int, heads: int, head_dim: int) -> Memory:
    """A memory that holds nothing, for ``batch`` sequences."""
    return Memory(torch.zeros(batch, heads, head_dim, head_dim), torch.zeros(batch, heads, head_dim))


def features(x: Tensor) -> Tensor:
    """elu(x) + 1: positive, so that the normaliser never vanishes where something was written."""
    return F.elu(x) + 1


def retrieve(query: Tensor, memory: Memory) -> Tensor:
    """What queries (B, T, H, E) find; zero in an empty memory. Returns (B, T, H, E)."""
    asked = features(query)
    read = torch.einsum("bthe,bhef->bthf", asked, memory.matrix.detach())
    weight = torch.einsum("bthe,bhe->bth", asked, memory.normaliser.detach())
    return read / (weight + EPSILON).unsqueeze(-1)


def write(memory: Memory, key: Tensor, value: Tensor) -> Memory:
    """``memory`` and, added to it, keys and values (B, T, H, E)."""
    stored = features(key.detach())
    return Memory(
        memory.matrix.detach() + torch.einsum("bthe,bthf->bhef", stored, value.detach()),
        memory.normaliser.detach() + stored.sum(dim=1),
    )


class MemoryAttention(nn.Module):
    """Infini-attention as a layer of its own: no positions, no residual path, no norm; 4 D^2 + H
    parameters."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        require_heads(width, heads)
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate = nn.Parameter(torch.zeros(heads))

    def forward(self, x: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """Outputs (B, T, D) for x (B, T, D) and a memory, and the memory with this window added."""
        query = self.query(x).unflatten(-1, (self.heads, -1))
        key, value = self.key_value(x).unflatten(-1, (2 * self.heads, -1)).chunk(2, dim=-2)
        local = attend(query, key, value, is_causal=True)
        mixed = torch.lerp(local, retrieve(query, memory), torch.sigmoid(self.gate).unsqueeze(-1))
        return self.out(mixed.flatten(-2)), write(memory, key, value)


class MemoryLayer(TransformerLayer):
    """A transformer layer whose heads also read a memory: H more parameters. Positions turn local attention
    alone."""

    def __init__(self, width: int, heads: int, ffn_width: int, norm: str = "post"):
        super().__init__(width, heads, ffn_width, norm)
        require_heads(width, heads)
        self.gate = nn.Parameter(torch.zeros(heads))

    def forward(  # type: ignore[override]  # it also takes a memory and returns one
        self, x: Tensor, cos: Tensor, sin: Tensor, memory: Memory
    ) -> tuple[Tensor, Memory]:
        """Outputs (B, T, D) for x (B, T, D) and a memory, and the memory with this window added."""
        source = self.attention_input(x)
        query = self.query(source).unflatten(-1, (self.heads, -1))
        key, value = self.key_value(source).unflatten(-1, (2 * self.heads, -1)).chunk(2, dim=-2)
        local = attend(rotate(query, cos, sin), rotate(key, cos, sin), value, is_causal=True)
        mixed = torch.lerp(local, retrieve(query, memory), torch.sigmoid(self.gate).unsqueeze(-1))
        return self.finish(x, mixed), write(memory, key, value)


class GatedMemory(nn.Module):
    """A memory beside a layer: adds sigmoid(W_g x) * W_o r to the layer's input x; 5 D^2 parameters.

    Inferred from the parameter count of the published model with memory in its hidden layers, whose code is
    lost. Nothing but the memory reads its keys and values, so their projections learn nothing and stay as
    drawn.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        require_heads(width, heads)
        self.heads = heads
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False).requires_grad_(False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, memory: Memory) -> tuple[Tensor, Memory]:
        """Outputs (B, T, D) for x (B, T, D) and a memory, and the memory with this window added."""
        read = retrieve(self.query(x).unflatten(-1, (self.heads, -1)), memory)
        key, value = self.key_value(x).unflatten(-1, (2 * self.heads, -1)).chunk(2, dim=-2)
        return x + torch.sigmoid(self.gate(x)) * self.out(read.flatten(-2)), write(memory, key, value)
