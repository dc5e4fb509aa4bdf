"""Transformer layers whose pieces (keys/values, queries, the rest) can be run on different sets of tokens.

Early exit needs that split: a token that left still owes its keys and values to later tokens, but nothing
else. The forward pass over all tokens is made of the same pieces, so the two cannot drift apart.

Shapes: B sequences, T positions, N = any number of tokens, L layers, D width, H heads, G heads of keys and
values (grouped-query attention where G < H), E width of a head, R rotated dimensions of a head (0 where
positions are learned).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp.errors import UserError


def require_heads(width: int, heads: int) -> None:
    """UserError unless the heads of a layer share its width evenly."""
    if heads < 1 or width % heads:
        raise UserError(f"heads = {heads} do not divide width = {width}; use a number of heads that does")


def rotary_table(num_positions: int, head_dim: int, base: float = 10000.0) -> tuple[Tensor, Tensor]:
    """Cosines and sines of rotary position embedding (RoFormer), each (num_positions, head_dim / 2).

    Dimension i turns with dimension i + head_dim / 2 (not with its neighbour, as in the paper), by the angle
    position x ``base`` ^ (-2 i / head_dim).
    """
    frequency = base ** (-torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    angle = torch.outer(torch.arange(num_positions, dtype=torch.float64), frequency)
    return angle.cos().float(), angle.sin().float()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn x (..., H, R) by the angles of its positions, given by their cosines and sines (..., R / 2)."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(-2).to(x.dtype), sin.unsqueeze(-2).to(x.dtype)
    return torch.cat(
        (
            torch.addcmul(first * cos, second, sin, value=-1),
            torch.addcmul(second * cos, first, sin),
        ),
        dim=-1,
    )


def attend(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
) -> Tensor:
    """Scaled dot-product attention of queries (B, T, H, E) over keys and values (B, S, G, E): (B, T, H, E).

    ``attn_mask`` and ``is_causal`` are those of ``torch.nn.functional.scaled_dot_product_attention``.
    """
    if query.device.type == "cpu":  # in bf16 the backward pass of the CPU kernel takes 7x the time of fp32
        query, key, value = query.float(), key.float(), value.float()
    # only where it is on: entering the context costs as much as a small product
    off = query.device.type == "cpu" and torch.is_autocast_enabled("cpu")
    with torch.autocast("cpu", enabled=False) if off else nullcontext():
        out = F.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            enable_gqa=query.shape[2] != key.shape[2],
            attn_mask=attn_mask,
            is_causal=is_causal,
        )
    return out.transpose(1, 2)


@dataclass(frozen=True)
class LayerCosts:
    """FLOPs of one layer's matrix products (a multiply-add counts two)."""

    token: int
    """Of a token that runs: queries, output projection, feed-forward part."""
    key_value: int
    """Of projecting one token's keys and values."""
    pair: int
    """Of one query meeting one key, in all heads."""


class Layer(nn.Module):
    """What every transformer layer offers: its pieces apart, each on whatever tokens it is given.

    A token that runs needs all of them; of a token that left, later layers need ``attention_input`` and
    ``keys_values`` alone (state propagation, CALM, arXiv 2207.07061).
    """

    heads: int
    """H, heads of queries."""
    groups: int
    """G, heads of keys and values."""
    head_dim: int
    """E, dimensions of a head."""

    def attention_input(self, x: Tensor) -> Tensor:
        """What attention reads, (..., D), of hidden states x (..., D): after its norm, if that is first."""
        raise NotImplementedError

    def queries(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Queries (..., H, E) of attention inputs (..., D) at the positions of cos and sin (..., R / 2)."""
        raise NotImplementedError

    def keys_values(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, each (..., G, E), of attention inputs (..., D)."""
        raise NotImplementedError

    def split_keys_values(self, projected: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, each (..., G, E), of their projection (..., 2 G E): all keys, then all values."""
        raise NotImplementedError

    def normalise(self, x: Tensor) -> Tensor:
        """Hidden states (..., D) after the norm before attention, without its weight and bias."""
        raise NotImplementedError

    def folded_keys_values(self) -> tuple[Tensor, Tensor | None]:
        """Weight (2 G E, D) and bias (2 G E,) or None that project ``normalise(x)`` to keys and values.

        The weight and bias of the norm are folded in; ``split_keys_values`` takes the product.
        """
        raise NotImplementedError

    @property
    def costs(self) -> LayerCosts:
        """FLOPs of the layer's pieces."""
        raise NotImplementedError

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Hidden states after the layer, from those before, x (..., D), and what heads read, (..., H, E)."""
        raise NotImplementedError

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Hidden states after the layer of x (B, T, D), every token attending to itself and those before.

        ``cos`` and ``sin`` (T, R / 2) are of the positions 0 .. T-1.
        """
        source = self.attention_input(x)
        query = self.queries(source, cos, sin)
        key, value = self.keys_values(source, cos, sin)
        return self.finish(x, attend(query, key, value, is_causal=True))


class StackedKeysValues(nn.Module):
    """Keys and values that states have in several layers, from one matrix product.

    The state of a token that left stays as it is in all later layers, so the projections of those layers can
    be stacked once the weights of the norms before them are folded in. That copies the weights, so it is put
    off until the first token has left.
    """

    def __init__(self, layers: Sequence[Layer]):
        super().__init__()
        self.layers = tuple(layers)  # a tuple registers no submodules: the layers belong to the model

    @cached_property
    def project(self) -> nn.Linear:
        """The stacked projection, D -> L x 2 G E."""
        folded = [layer.folded_keys_values() for layer in self.layers]
        project = nn.Linear(folded[0][0].shape[1], 1, bias=False, device="meta")
        project.weight = nn.Parameter(
            torch.cat([weight.detach() for weight, _ in folded]), requires_grad=False
        )
        biases = [bias.detach() for _, bias in folded if bias is not None]
        if biases:
            project.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
        return project

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Keys and values, each (N, G, E), that states x (N, D) have in every layer."""
        projected = self.project(self.layers[0].normalise(x)).chunk(len(self.layers), dim=-1)
        return [layer.split_keys_values(part, cos, sin) for layer, part in zip(self.layers, projected)]


class TransformerLayer(Layer):
    """Self-attention with rotary positions and a SwiGLU feed-forward part; no biases, no dropout.

    norm="pre":  x = x + attn(N1(x));  x = x + ffn(N2(x))    (Llama) norm="post": x = N1(x + attn(x));  x =
    N2(x + ffn(x))    (reports character-systems, exit-labels, loss-prediction)

    With fewer ``key_value_heads`` than heads, groups of heads share keys and values (arXiv 2305.13245); a
    token that left then owes later layers less. ``eps`` is that of the norms.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        ffn_width: int,
        norm: str = "pre",
        eps: float = 1e-6,
        key_value_heads: int | None = None,
    ):
        super().__init__()
        self.heads, self.head_dim, self.norm = heads, width // heads, norm
        self.groups = key_value_heads or heads
        self.attn_norm = nn.RMSNorm(width, eps=eps)
        self.ffn_norm = nn.RMSNorm(width, eps=eps)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * self.groups * self.head_dim, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.ffn_in = nn.Linear(width, 2 * ffn_width, bias=False)  # gate and up projection side by side
        self.ffn_out = nn.Linear(ffn_width, width, bias=False)

    def attention_input(self, x: Tensor) -> Tensor:
        return self.attn_norm(x) if self.norm == "pre" else x

    def queries(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return rotate(self.query(x).unflatten(-1, (self.heads, self.head_dim)), cos, sin)

    def keys_values(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        return self.split_keys_values(self.key_value(x), cos, sin)

    def split_keys_values(self, projected: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        key, value = projected.unflatten(-1, (2 * self.groups, self.head_dim)).chunk(2, dim=-2)
        return rotate(key, cos, sin), value

    def normalise(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], None, self.attn_norm.eps) if self.norm == "pre" else x

    def folded_keys_values(self) -> tuple[Tensor, Tensor | None]:
        weight = self.key_value.weight
        return (weight * self.attn_norm.weight if self.norm == "pre" else weight), None

    @property
    def costs(self) -> LayerCosts:
        width = self.query.in_features
        return LayerCosts(
            2 * (2 * width * width + 3 * width * self.ffn_out.in_features),
            2 * width * self.key_value.out_features,
            2 * 2 * width,
        )

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.attn_out(attended.flatten(-2))
        if self.norm == "post":
            x = self.attn_norm(x)
            return self.ffn_norm(x + self.feed_forward(x))
        return x + self.feed_forward(self.ffn_norm(x))

    def feed_forward(self, x: Tensor) -> Tensor:
        """The SwiGLU feed-forward part of normalised states (..., D), without the residual connection."""
        gate, up = self.ffn_in(x).chunk(2, dim=-1)
        return self.ffn_out(F.silu(gate) * up)
