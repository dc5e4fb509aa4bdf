"""Layers of Transformers checkpoints with their pieces apart, as ``nn.layers.Layer`` has them.

An adapter holds references to the modules of a Transformers layer and copies none of their weights. Dropout
is left out. Shapes are those of ``nn.layers``.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp.nn.layers import Layer, LayerCosts, rotate

if TYPE_CHECKING:
    from transformers.models.gpt2.modeling_gpt2 import GPT2Block
    from transformers.models.gpt_neox.modeling_gpt_neox import GPTNeoXLayer as NeoXLayer
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRMSNorm


def rotate_part(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the first R dimensions of x (..., H, E) by its positions' angles, cos and sin (..., R / 2)."""
    rotated = 2 * cos.shape[-1]
    if rotated == x.shape[-1]:
        return rotate(x, cos, sin)
    return torch.cat((rotate(x[..., :rotated], cos, sin), x[..., rotated:]), dim=-1) if rotated else x


class PretrainedLayer(Layer):
    """A layer of a Transformers checkpoint; each family says where its matrices are."""

    STACK: ClassVar[str]
    """The name of the list of layers within the family's decoder."""
    FINAL_NORM: ClassVar[str]
    """The name of the norm after the last layer."""

    def split_keys_values(self, projected: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        key, value = projected.unflatten(-1, (2 * self.groups, self.head_dim)).chunk(2, dim=-2)
        return rotate_part(key, cos, sin), value

    @property
    def writers(self) -> tuple[nn.Module, nn.Module]:
        """The matrices whose products are added to the state: of attention and of the feed-forward part."""
        raise NotImplementedError


def identity_copy(layer: PretrainedLayer) -> PretrainedLayer:
    """A copy of a layer, with its own weights, that adds nothing yet: what writes to the state is 0."""
    silent = copy.deepcopy(layer)
    with torch.no_grad():
        for writer in silent.writers:
            for parameter in writer.parameters():
                parameter.zero_()
    return silent


class LlamaLayer(PretrainedLayer):
    """A layer of Llama, Mistral, Qwen2 (with biases before attention) or Qwen3 (with norms of heads).

    The layers of the four families have their matrices under the same names.
    """

    STACK, FINAL_NORM = "layers", "norm"

    def __init__(self, layer: LlamaDecoderLayer):
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
        width, heads_width = self.query.in_features, self.heads * self.head_dim
        return LayerCosts(
            token=2 * (2 * width * heads_width + 3 * width * self.mlp.up_proj.out_features),
            key_value=2 * 2 * width * self.groups * self.head_dim,
            pair=2 * 2 * heads_width,
        )

    @property
    def writers(self) -> tuple[nn.Module, nn.Module]:
        return self.attn_out, self.mlp.down_proj

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.attn_out(attended.flatten(-2))
        return x + self.mlp(_rms_norm(self.ffn_norm, x))


class GPT2Layer(PretrainedLayer):
    """A layer of GPT-2: learned positions, so no rotation; queries, keys, values from one matrix (D, 3 D)."""

    STACK, FINAL_NORM = "h", "ln_f"

    def __init__(self, layer: GPT2Block):
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
    """A layer of GPT-NeoX, of which attention and feed-forward part may stand side by side.

    Only a part of each head is rotated. Its matrix (3 D, D) holds query, key and value of the first head,
    then those of the second: what serves the queries alone is a stride through it, multiplied head by head
    rather than copied.
    """

    STACK, FINAL_NORM = "layers", "final_layer_norm"

    def __init__(self, layer: NeoXLayer):
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
        """The matrix by heads: weight (H, 3 E, D) and bias (H, 3 E) or None."""
        shape, bias = (self.heads, 3 * self.head_dim), self.projections.bias
        return self.projections.weight.unflatten(0, shape), None if bias is None else bias.unflatten(0, shape)

    def _project(self, x: Tensor, part: slice) -> Tensor:
        """Products (..., H, P) of x (..., D) with the P rows ``part`` of every head."""
        weight, bias = self._by_head()
        out = (x.flatten(0, -2) @ weight[:, part].mT).transpose(0, 1).unflatten(0, x.shape[:-1])
        return out if bias is None else out + bias[:, part]

    def normalise(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=self.attn_norm.eps)

    def folded_keys_values(self) -> tuple[Tensor, Tensor | None]:
        weight, bias = self._by_head()
        return _fold(
            self._keys_then_values(weight),
            None if bias is None else self._keys_then_values(bias),
            self.attn_norm,
        )

    def _keys_then_values(self, by_head: Tensor) -> Tensor:
        """The rows (2 H E, ...) of all keys, then of all values, of the matrix by heads (H, 3 E, ...)."""
        return torch.cat([part.flatten(0, 1) for part in by_head.split(self.head_dim, 1)[1:]])

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


LAYERS: dict[str, type[LlamaLayer] | type[GPT2Layer] | type[GPTNeoXLayer]] = {
    "llama": LlamaLayer,
    "mistral": LlamaLayer,
    "qwen2": LlamaLayer,
    "qwen3": LlamaLayer,
    "gpt2": GPT2Layer,
    "gpt_neox": GPTNeoXLayer,
}
"""The adapter of each supported family, by the ``model_type`` of a checkpoint's configuration."""


def _rms_norm(norm: LlamaRMSNorm, x: Tensor) -> Tensor:
    """What Transformers' RMS norm gives of x (..., D), in one operation instead of six."""
    return F.rms_norm(x, x.shape[-1:], norm.weight, norm.variance_epsilon)


def _fold(weight: Tensor, bias: Tensor | None, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """Weight and bias of a projection with those of the norm before it folded in: for inputs without them."""
    shift = weight @ norm.bias
    return weight * norm.weight, shift if bias is None else bias + shift
