"""Keys and values of tokens that left, while scoring: a row's in one product a layer, as executed, against one product for all later layers.

Decoding stacks the layers (``StackedKeysValues``): a step has so few tokens that reading the matrices is the work. A batch that
is scored has thousands, and its later layers need keys and values of everybody in one place.
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
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(TOKENS, layers[0].attn_norm.weight.shape[0], generator=generator)
    position = torch.arange(TOKENS) % LENGTH
    stack = StackedKeysValues(layers)
    for share in SHARES:
        left = torch.rand(TOKENS, generator=generator) < share
        gone, here = left.nonzero().squeeze(1), (~left).nonzero().squeeze(1)

        def by_layer() -> tuple[Tensor, Tensor]:
            for layer in layers:
                made = layer.keys_values(
                    layer.attention_input(x.view(-1, LENGTH, x.shape[1])), cos[:LENGTH], sin[:LENGTH]
                )
            return made[0].flatten(0, 1), made[1].flatten(0, 1)

        def stacked() -> tuple[Tensor, Tensor]:
            of_gone = stack(x[gone], cos[position[gone]], sin[position[gone]])  # noqa: B023
            turn = cos[position[here]], sin[position[here]]  # noqa: B023
            for layer, parts in zip(layers, of_gone):
                own = layer.keys_values(layer.attention_input(x[here]), *turn)  # noqa: B023
                made = tuple(
                    part.new_empty(TOKENS, *part.shape[1:])
                    .index_copy_(0, gone, part)
                    .index_copy_(0, here, mine)  # noqa: B023
                    for part, mine in zip(parts, own)
                )
            return made

        for one, other in zip(by_layer(), stacked()):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
        yield Row(
            f"stacked_key_values_{name}_{100 * share:.0f}",
            median_ratio(*reversed(in_turn(by_layer, stacked, PAIRS))),
            "x time",
            None,
            f"a row's keys and values in one product a layer; {share:.0%} of {TOKENS} tokens left, {size}",
            PAIRS,
        )
