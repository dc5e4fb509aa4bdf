"""Layers of Transformers checkpoints, with their pieces apart: what ``nn.layers.TransformerLayer`` offers, on their own weights.

An adapter holds references to the modules of a Transformers layer and copies none of their weights. Dropout is left out.

Shapes: N = any number of tokens, D width, H heads, G heads of keys and values, E width of a head, R rotated dimensions of a
head (0 where positions are learned).
"""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp.nn.layers import LayerCosts, attend, rotate


def rotate_part(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first R dimensions of x (..., H, E) by the angles of its positions, cos and sin (..., R / 2)."""
    rotated = 2 * cos.shape[-1]
    if rotated == x.shape[-1]:
        return rotate(x, cos, sin)
    return torch.cat((rotate(x[..., :rotated], cos, sin), x[..., rotated:]), dim=-1) if rotated else x


class PretrainedLayer(nn.Module):
    """What the families share; each says where its matrices are."""

    heads: int
    groups: int
    head_dim: int
    attn_norm: nn.Module

    def attention_input(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def queries(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Queries (..., H, E) of attention inputs (..., D) at the positions of cos and sin (..., R / 2)."""
        raise NotImplementedError

    def keys_values(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, each (..., G, E), of attention inputs (..., D)."""
        raise NotImplementedError

    def split_keys_values(self, projected: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values, each (..., G, E), of what their matrices give, (..., 2 G E): all keys, then all values."""
        key, value = projected.unflatten(-1, (2 * self.groups, self.head_dim)).chunk(2, dim=-2)
        return rotate_part(key, cos, sin), value

    def normalise(self, x: Tensor) -> Tensor:
        """The norm before attention without its weight and bias."""
        raise NotImplementedError

    def folded_keys_values(self) -> tuple[Tensor, Tensor | None]:
        """Weight (2 G E, D) and bias (2 G E,) or None that make ``split_keys_values``' argument of ``normalise(x)``."""
        raise NotImplementedError

    @property
    def costs(self) -> LayerCosts:
        raise NotImplementedError

    @property
    def writers(self) -> tuple[nn.Module, nn.Module]:
        """The matrices whose products are added to the state: of attention and of the feed-forward part."""
        raise NotImplementedError

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """The rest of the layer for tokens x (..., D), given what their heads read, attended (..., H, E)."""
        raise NotImplementedError

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """All tokens of x (B, T, D), causally; cos and sin (T, R / 2)."""
        source = self.attention_input(x)
        query = self.queries(source, cos, sin)
        key, value = self.keys_values(source, cos, sin)
        return self.finish(x, attend(query, key, value, is_causal=True))


def identity_copy(layer: PretrainedLayer) -> PretrainedLayer:
    """A layer with weights of its own, those of ``layer`` but for what is added to the state, which begins as zero."""
    own = copy.deepcopy(layer)
    with torch.no_grad():
        for writer in own.writers:
            for parameter in writer.parameters():
                parameter.zero_()
    return own


class LlamaLayer(PretrainedLayer):
    """Llama, Mistral, Qwen2 (biases of queries, keys and values) and Qwen3 (a norm per head of queries and of keys)."""

    STACK, FINAL_NORM = "layers", "norm"

    def __init__(self, layer: nn.Module):
        super().__init__()
        attention, mlp = layer.self_attn, layer.mlp
        self.head_dim, self.scaling = attention.head_dim, attention.scaling
        self.heads = attention.q_proj.out_features // self.head_dim
        self.groups = attention.k_proj.out_features // self.head_dim
        self.attn_norm, self.ffn_norm = layer.input_layernorm, layer.post_attention_layernorm
        self.query, self.key, self.value = attention.q_proj, attention.k_proj, attention.v_proj
        self.query_norm, self.key_norm = (
            getattr(attention, "q_norm", None),
            getattr(attention, "k_norm", None),
        )
        self.attn_out, self.mlp = attention.o_proj, mlp

    def attention_input(self, x: Tensor) -> Tensor:
        return _rms_norm(self.attn_norm, x)

    def queries(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        query = self.query(x).unflatten(-1, (self.heads, self.head_dim))
        return rotate_part(query if self.query_norm is None else _rms_norm(self.query_norm, query), cos, sin)

    def keys_values(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        shape = (self.groups, self.head_dim)
        return self._turned(self.key(x).unflatten(-1, shape), cos, sin), self.value(x).unflatten(-1, shape)

    def split_keys_values(self, projected: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        key, value = projected.unflatten(-1, (2 * self.groups, self.head_dim)).chunk(2, dim=-2)
        return self._turned(key, cos, sin), value

    def _turned(self, key: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return rotate_part(key if self.key_norm is None else _rms_norm(self.key_norm, key), cos, sin)

    def normalise(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], None, self.attn_norm.variance_epsilon)

    def folded_keys_values(self) -> tuple[Tensor, Tensor | None]:
        weight = torch.cat((self.key.weight, self.value.weight)) * self.attn_norm.weight
        return weight, None if self.key.bias is None else torch.cat((self.key.bias, self.value.bias))

    @property
    def costs(self) -> LayerCosts:
        width, own = self.query.in_features, self.heads * self.head_dim
        return LayerCosts(
            2 * (2 * width * own + 3 * width * self.mlp.up_proj.out_features),
            2 * 2 * width * self.groups * self.head_dim,
            2 * 2 * own,
        )

    @property
    def writers(self) -> tuple[nn.Module, nn.Module]:
        return self.attn_out, self.mlp.down_proj

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.attn_out(attended.flatten(-2))
        return x + self.mlp(_rms_norm(self.ffn_norm, x))


class GPT2Layer(PretrainedLayer):
    """GPT-2: learned positions, so nothing turns; one matrix (D, 3 D) for queries, keys and values."""

    STACK, FINAL_NORM = "h", "ln_f"

    def __init__(self, layer: nn.Module):
        super().__init__()
        attention, mlp = layer.attn, layer.mlp
        self.heads = self.groups = attention.num_heads
        self.head_dim, self.scaling = attention.head_dim, attention.scaling
        self.attn_norm, self.ffn_norm = layer.ln_1, layer.ln_2
        self.projections, self.attn_out = attention.c_attn, attention.c_proj
        self.ffn_in, self.activation, self.ffn_out = mlp.c_fc, mlp.act, mlp.c_proj

    def attention_input(self, x: Tensor) -> Tensor:
        return self.attn_norm(x)

    def queries(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        width = self.heads * self.head_dim
        query = F.linear(x, self.projections.weight[:, :width].T, self.projections.bias[:width])
        return query.unflatten(-1, (self.heads, self.head_dim))

    def keys_values(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        width = self.heads * self.head_dim
        projected = F.linear(x, self.projections.weight[:, width:].T, self.projections.bias[width:])
        return self.split_keys_values(projected, cos, sin)

    def normalise(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=self.attn_norm.eps)

    def folded_keys_values(self) -> tuple[Tensor, Tensor | None]:
        width = self.heads * self.head_dim
        return _fold(self.projections.weight[:, width:].T, self.projections.bias[width:], self.attn_norm)

    @property
    def costs(self) -> LayerCosts:
        width, inner = self.ffn_in.weight.shape
        return LayerCosts(2 * (2 * width * width + 2 * width * inner), 2 * 2 * width * width, 2 * 2 * width)

    @property
    def writers(self) -> tuple[nn.Module, nn.Module]:
        return self.attn_out, self.ffn_out

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.attn_out(attended.flatten(-2))
        return x + self.ffn_out(self.activation(self.ffn_in(self.ffn_norm(x))))


class GPTNeoXLayer(PretrainedLayer):
    """GPT-NeoX: attention and feed-forward part side by side or one after the other, rotated only in part.

    Its matrix (3 D, D) holds query, key and value of the first head, then those of the second: what serves the queries
    alone is a stride through it, multiplied head by head rather than copied.
    """

    STACK, FINAL_NORM = "layers", "final_layer_norm"

    def __init__(self, layer: nn.Module):
        super().__init__()
        attention, mlp = layer.attention, layer.mlp
        self.head_dim, self.scaling = attention.head_size, attention.scaling
        self.heads = self.groups = attention.query_key_value.out_features // (3 * self.head_dim)
        self.parallel = layer.use_parallel_residual
        self.attn_norm, self.ffn_norm = layer.input_layernorm, layer.post_attention_layernorm
        self.projections, self.attn_out = attention.query_key_value, attention.dense
        self.mlp = mlp

    def attention_input(self, x: Tensor) -> Tensor:
        return self.attn_norm(x)

    def queries(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        return rotate_part(self._project(x, slice(0, self.head_dim)), cos, sin)

    def keys_values(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        key, value = self._project(x, slice(self.head_dim, None)).chunk(2, dim=-1)
        return rotate_part(key, cos, sin), value

    def _by_head(self) -> tuple[Tensor, Tensor | None]:
        """Weight (H, 3 E, D) and bias (H, 3 E)."""
        shape, bias = (self.heads, 3 * self.head_dim), self.projections.bias
        return self.projections.weight.unflatten(0, shape), None if bias is None else bias.unflatten(0, shape)

    def _project(self, x: Tensor, part: slice) -> Tensor:
        """(..., H, P) of x (..., D) by the P rows ``part`` of every head."""
        weight, bias = self._by_head()
        out = (x.flatten(0, -2) @ weight[:, part].mT).transpose(0, 1).unflatten(0, x.shape[:-1])
        return out if bias is None else out + bias[:, part]

    def normalise(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=self.attn_norm.eps)

    def folded_keys_values(self) -> tuple[Tensor, Tensor | None]:
        weight, bias = (
            None
            if part is None
            else torch.cat([share.flatten(0, 1) for share in part.split(self.head_dim, 1)[1:]])
            for part in self._by_head()
        )
        return _fold(weight, bias, self.attn_norm)

    @property
    def costs(self) -> LayerCosts:
        width, inner = self.attn_out.in_features, self.mlp.dense_h_to_4h.out_features
        return LayerCosts(2 * (2 * width * width + 2 * width * inner), 2 * 2 * width * width, 2 * 2 * width)

    @property
    def writers(self) -> tuple[nn.Module, nn.Module]:
        return self.attn_out, self.mlp.dense_4h_to_h

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        after = x + self.attn_out(attended.flatten(-2))
        return after + self.mlp(self.ffn_norm(x if self.parallel else after))


LAYERS = {
    "llama": LlamaLayer,
    "mistral": LlamaLayer,
    "qwen2": LlamaLayer,
    "qwen3": LlamaLayer,
    "gpt2": GPT2Layer,
    "gpt_neox": GPTNeoXLayer,
}
"""By the ``model_type`` of a checkpoint's configuration."""


def _rms_norm(norm: nn.Module, x: Tensor) -> Tensor:
    """Transformers' RMS norms, in one operation instead of six."""
    return F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)


def _fold(weight: Tensor, bias: Tensor | None, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias for inputs that lack the weight and bias of the norm."""
    shift = weight @ norm.bias
    return weight * norm.weight, shift if bias is None else bias + shift
