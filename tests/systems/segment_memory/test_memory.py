"""Compressive memory against its equations, in loops over positions."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.errors import UserError
from offramp.nn.layers import TransformerLayer, rotary_table
from offramp.systems.segment_memory.memory import (
    MemoryAttention,
    MemoryLayer,
    empty_memory,
    features,
    retrieve,
    write,
)


def test_features_are_positive_and_equal_their_formula():
    x = torch.tensor([-3.0, -0.5, 0.0, 2.0])
    torch.testing.assert_close(
        features(x), torch.tensor([0.049787, 0.606531, 1.0, 3.0]), atol=1e-5, rtol=1e-5
    )


@given(batch=st.integers(1, 3), length=st.integers(1, 5), heads=st.integers(1, 3), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_reading_is_linear_attention_over_everything_written(batch, length, heads, seed):
    torch.manual_seed(seed)
    keys, values = torch.randn(2, batch, length, heads, 4), torch.randn(2, batch, length, heads, 4)
    memory = empty_memory(batch, heads, 4)
    for key, value in zip(keys, values):
        memory = write(memory, key, value)
    query = torch.randn(batch, 2, heads, 4)
    key, value = keys.transpose(0, 1).flatten(1, 2), values.transpose(0, 1).flatten(1, 2)
    weights = torch.einsum("bthe,bshe->bhts", features(query), features(key))
    expected = torch.einsum("bhts,bshe->bthe", weights / weights.sum(-1, keepdim=True), value)
    torch.testing.assert_close(retrieve(query, memory), expected, atol=1e-4, rtol=1e-4)


def test_an_empty_memory_gives_nothing_and_rows_can_be_emptied():
    memory = empty_memory(2, 2, 4)
    assert not retrieve(torch.randn(2, 3, 2, 4), memory).any()
    full = write(memory, torch.randn(2, 3, 2, 4), torch.randn(2, 3, 2, 4)).keep(torch.tensor([True, False]))
    read = retrieve(torch.randn(2, 3, 2, 4), full)
    assert read[0].any() and not read[1].any()


def test_no_gradient_passes_through_the_memory():
    key = torch.randn(1, 3, 2, 4, requires_grad=True)
    memory = write(empty_memory(1, 2, 4), key, key)
    assert not memory.matrix.requires_grad and not memory.normaliser.requires_grad


def test_the_gate_mixes_per_head():
    torch.manual_seed(0)
    layer, x = MemoryAttention(8, 2), torch.randn(1, 5, 8)
    assert sum(parameter.numel() for parameter in layer.parameters()) == 4 * 64 + 2
    _, memory = layer(x, empty_memory(1, 2, 4))
    torch.nn.init.eye_(layer.out.weight)
    with torch.no_grad():
        layer.gate.copy_(
            torch.tensor([-100.0, 100.0])
        )  # the first head is local, the second reads the memory
        out, _ = layer(x, memory)
        query = layer.query(x).unflatten(-1, (2, 4))
        torch.testing.assert_close(out[..., 4:], retrieve(query, memory)[..., 1, :])
        local, _ = layer(x, empty_memory(1, 2, 4))
        torch.testing.assert_close(out[..., :4], local[..., :4])


def test_a_layer_whose_gate_is_shut_is_the_plain_layer():
    torch.manual_seed(0)
    layer, plain = MemoryLayer(8, 2, 16), TransformerLayer(8, 2, 16, "post")
    plain.load_state_dict({name: value for name, value in layer.state_dict().items() if name != "gate"})
    torch.nn.init.constant_(layer.gate, -100.0)
    x, turns = torch.randn(2, 5, 8), rotary_table(5, 4)
    out, memory = layer(x, *turns, empty_memory(2, 2, 4))
    torch.testing.assert_close(out, plain(x, *turns))
    torch.testing.assert_close(layer(x, *turns, memory)[0], plain(x, *turns))


def test_heads_that_do_not_divide_are_named():
    with pytest.raises(UserError, match="heads = 3 do not divide width = 8"):
        MemoryAttention(8, 3)
