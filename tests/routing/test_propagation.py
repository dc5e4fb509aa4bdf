"""The cost of state propagation: none where states of tokens that left are the true ones, else some."""

from __future__ import annotations

import pytest
import torch

from offramp.routing.propagation import propagation_cost
from tests.routing.test_executor import make_model


def batches():
    return [
        tuple(torch.randint(50, (2, 4, 24), generator=torch.Generator().manual_seed(seed)))
        for seed in range(3)
    ]


def test_nothing_is_lost_where_later_blocks_do_not_change_what_others_see():
    """Of later blocks whose layers add nothing propagated states are the true ones."""
    model = make_model((1, 2))
    for layer in model.blocks[1]:
        torch.nn.init.zeros_(layer.attn_out.weight)
        torch.nn.init.zeros_(layer.ffn_out.weight)
    cost = propagation_cost(model, batches(), 50).propagate
    for rise in (cost.keep_first_0, cost.keep_first_1):
        assert rise.nll_rise == pytest.approx(0, abs=1e-6)


def test_propagated_and_dropped_states_change_what_later_tokens_predict():
    cost = propagation_cost(make_model((1, 1, 2)), batches(), 50)
    for kept in (cost.propagate, cost.drop):
        for rise in (kept.keep_first_0, kept.keep_first_1):
            low, high = rise.interval
            assert rise.nll_rise != 0 and low <= rise.nll_rise <= high
