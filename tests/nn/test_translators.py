"""Translators begin as the identity, can leave it, and cost what they say."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from offramp.nn.translators import KINDS, make_translator


@settings(deadline=None, max_examples=50)
@given(
    st.sampled_from(KINDS), st.integers(1, 40), st.integers(1, 20), st.integers(0, 5), st.integers(0, 2**31)
)
def test_the_start_is_exactly_the_identity(kind, width, rank, tokens, seed):
    torch.manual_seed(seed)
    x = torch.randn(2, tokens, width) * 100
    assert torch.equal(make_translator(kind, width, rank)(x), x)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_one_step_of_training_leaves_the_identity(kind):
    translator, x = make_translator(kind, 8, 3), torch.randn(5, 8)
    translator(x).pow(3).sum().backward()
    assert translator.last.weight.grad.abs().sum() > 0
    with torch.no_grad():
        translator.last.weight -= 0.1 * translator.last.weight.grad
    assert not torch.equal(translator(x), x)


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(KINDS), st.integers(1, 40), st.integers(1, 20), st.integers(1, 7))
def test_flops_are_those_torch_counts(kind, width, rank, tokens):
    translator = make_translator(kind, width, rank)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        translator(torch.randn(tokens, width))
    assert counter.get_total_flops() == tokens * translator.flops
