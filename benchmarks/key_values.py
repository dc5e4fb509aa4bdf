"""Keys and values of tokens that left, while scoring.

A row's in one product a layer, as executed, are held against one product for all later layers. Decoding
stacks the layers (``StackedKeysValues``): a step has so few tokens that reading the matrices is the work. A
batch that is scored has thousands, and its later layers need keys and values of everybody in one place.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.inputs import COMPUTE_BOUND, compute_bound_model, smollm2
from benchmarks.measure import Row, in_turn, median_ratio
from offramp.nn.layers import StackedKeysValues

TOKENS, LENGTH, SHARES, PAIRS = 4096, 128, (0.5, 0.9), 15


@torch.no_grad()
def run() -> Iterator[Row]:
    lm = compute_bound_model()
    yield from rows(
        "native",
        f"{COMPUTE_BOUND}, 8 layers left",
        [layer for block in lm.blocks[1:] for layer in block],
        lm.cos,
        lm.sin,
    )
    lm = smollm2((10, 20), LENGTH)[1]
    yield from rows(
        "smollm2",
        "SmolLM2, 20 layers left",
        [layer for block in lm.blocks[1:] for layer in block],
        lm.cos,
        lm.sin,
    )


def rows(name: str, size: str, layers: Sequence[Any], cos: Tensor, sin: Tensor) -> Iterator[Row]:
    """One row per share of tokens that left before ``layers``; cos and sin (T, R / 2) are rotary tables."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TOKENS, layers[0].attn_norm.weight.shape[0], generator=generator)
    for share in SHARES:
        left = torch.rand(TOKENS, generator=generator) < share
        work = KeysValues(layers, x, left, cos, sin)
        for one, other in zip(work.by_layer(), work.stacked()):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
        yield Row(
            f"stacked_key_values_{name}_{100 * share:.0f}",
            median_ratio(*reversed(in_turn(work.by_layer, work.stacked, PAIRS))),
            "x time",
            None,
            f"a row's keys and values in one product a layer; {share:.0%} of {TOKENS} tokens left, {size}",
        )


class KeysValues:
    """Two ways to the keys and values (N, H, E) of all tokens x (N, D), of which ``left`` (N,) have left."""

    def __init__(self, layers: Sequence[Any], x: Tensor, left: Tensor, cos: Tensor, sin: Tensor):
        self.layers, self.x, self.stack = layers, x, StackedKeysValues(layers)
        self.cos, self.sin, self.position = cos, sin, torch.arange(len(x)) % LENGTH
        self.gone, self.present = left.nonzero().squeeze(1), (~left).nonzero().squeeze(1)

    def by_layer(self) -> tuple[Tensor, Tensor]:
        """Those of the last layer, each layer's computed for all tokens."""
        for layer in self.layers:
            inputs = layer.attention_input(self.x.view(-1, LENGTH, self.x.shape[1]))
            keys, values = layer.keys_values(inputs, self.cos[:LENGTH], self.sin[:LENGTH])
        return keys.flatten(0, 1), values.flatten(0, 1)

    def stacked(self) -> tuple[Tensor, Tensor]:
        """Those of the last layer, all layers' computed at once for the tokens that left."""
        turn_of_gone, turn = (
            (self.cos[self.position[rows]], self.sin[self.position[rows]])
            for rows in (self.gone, self.present)
        )
        of_gone = self.stack(self.x[self.gone], *turn_of_gone)
        for layer, parts in zip(self.layers, of_gone):
            of_present = layer.keys_values(layer.attention_input(self.x[self.present]), *turn)
            keys, values = (
                part.new_empty(len(self.x), *part.shape[1:])
                .index_copy_(0, self.gone, part)
                .index_copy_(0, self.present, others)
                for part, others in zip(parts, of_present)
            )
        return keys, values
