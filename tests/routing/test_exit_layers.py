"""Exits with a transformer layer of their own: parallel equals sequential, skipped means not called."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from offramp.models.native import BlockwiseLM, ModelConfig
from offramp.nn.layers import TransformerLayer
from offramp.routing.break_even import flops_break_even
from offramp.routing.cost import executed_flops, exit_costs, full_depth_flops
from offramp.routing.decoder import Decoder
from offramp.routing.executor import Decision, Executor, Policy, Work
from offramp.routing.policies import FixedExit, GivenExits
from tests.fixtures.routing_reference import counting
from tests.routing.test_decoder import check_cutting_back, check_pieces_equal_one_pass, feed_in_pieces
from tests.routing.test_executor import check_parallel_equals_sequential

KV = st.sampled_from(["propagate", "recompute", "drop"])
MODELS = {
    "block_layers": st.sampled_from([(1, 2), (1, 1, 2), (1, 1, 1, 1)]),
    "norm": st.sampled_from(["pre", "post"]),
    "exited_state": st.sampled_from(["output", "input"]),
    "seed": st.integers(0, 10_000),
}


class WithExitLayers(BlockwiseLM):
    """The native model with a layer before every early exit."""

    def __init__(self, config: ModelConfig):
        super().__init__(config)
        self.exit_layers = nn.ModuleList(
            TransformerLayer(config.width, config.heads, config.ffn_width, config.norm)
            for _ in range(config.num_blocks - 1)
        )

    def exit_layer(self, exit):
        return self.exit_layers[exit] if exit < len(self.exit_layers) else None


def make_model(block_layers=(1, 2), norm="pre", exited_state="output", seed=0):
    torch.manual_seed(seed)
    model = WithExitLayers(
        ModelConfig(
            vocab_size=50,
            window=24,
            width=16,
            heads=2,
            ffn_width=24,
            block_layers=block_layers,
            norm=norm,
            tied=True,
            exited_state=exited_state,
        )
    )
    for parameter in model.parameters():  # far from initialisation, so that every part matters
        torch.nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0.0, std=0.25)
    return model.eval()


class ReadingPolicy(Policy):
    """Leaves where a fixed score of the state is positive, and reads out everybody it asks if it is to."""

    def __init__(self, model, reads_out, bias):
        self.model, self.reads_out, self.bias = model, reads_out, bias
        self.weights = torch.randn(
            len(model.blocks), model.config.width, generator=torch.Generator().manual_seed(7)
        )

    def score(self, exit, states):
        return states @ self.weights[exit] + self.bias

    def decide(self, arrivals):
        assert (arrivals.read is not None) == self.reads_out
        leaves = self.score(arrivals.exit, arrivals.states) > 0
        if not self.reads_out or arrivals.targets is None:
            return Decision(leaves)
        log_p = self.model.logits(arrivals.exit, arrivals.read).log_softmax(-1)
        return Decision(leaves, None, -log_p.gather(1, arrivals.targets[:, None])[:, 0], log_p.argmax(-1))


@settings(max_examples=60, deadline=None)
@given(
    **MODELS,
    kv=KV,
    reads_out=st.booleans(),
    bias=st.sampled_from([-2.0, 0.0, 2.0]),
    length=st.integers(1, 24),
)
def test_one_parallel_pass_equals_decoding_token_by_token(bias, length, seed, kv, reads_out, **shape):
    model = make_model(seed=seed, **shape)
    tokens, targets = torch.randint(50, (2, 3, length), generator=torch.Generator().manual_seed(seed))
    check_parallel_equals_sequential(model, kv, ReadingPolicy(model, reads_out, bias), tokens, targets)


@settings(max_examples=60, deadline=None)
@given(
    **MODELS,
    kv=KV,
    reads_out=st.booleans(),
    bias=st.sampled_from([-2.0, 0.0, 2.0]),
    lengths=st.lists(st.integers(1, 23), min_size=1, max_size=4),
)
def test_decoding_in_any_pieces_equals_one_parallel_pass(bias, lengths, seed, kv, reads_out, **shape):
    model = make_model(seed=seed, **shape)
    text = torch.randint(50, (len(lengths), 24), generator=torch.Generator().manual_seed(seed))
    check_pieces_equal_one_pass(model, kv, ReadingPolicy(model, reads_out, bias), text, lengths, seed)


@settings(max_examples=15, deadline=None)
@given(**MODELS)
def test_everybody_at_one_exit_is_that_exit_over_whole_sequences(seed, **shape):
    model = make_model(seed=seed, **shape)
    tokens, targets = torch.randint(50, (2, 4, 24), generator=torch.Generator().manual_seed(seed))
    for exit, states in enumerate(model(tokens)):
        routed = Executor(model).run(tokens, targets, GivenExits(torch.full((96,), exit)))
        log_p = model.logits(exit, model.exit_states(exit, states)).log_softmax(-1)
        torch.testing.assert_close(
            routed.loss, -log_p.gather(-1, targets[..., None])[..., 0], atol=1e-5, rtol=1e-5
        )


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), kv=KV, reads_out=st.booleans(), decoding=st.booleans())
def test_calls_of_exit_layers_are_those_reported(seed, kv, reads_out, decoding):
    model, seen, work = make_model((1, 1, 1), seed=seed), Counter(), Work()
    for exit, layer in enumerate(model.exit_layers):
        for name in ("query", "attn_out", "ffn_in", "ffn_out", "key_value"):
            getattr(layer, name).register_forward_hook(counting(seen, (exit, name)))
    tokens, targets = torch.randint(50, (2, 4, 24), generator=torch.Generator().manual_seed(seed))
    policy = ReadingPolicy(model, reads_out, 0.0)
    if decoding:
        decoder = Decoder(model, 4, kv)
        decoder.work = work
        feed_in_pieces(decoder, tokens, [23] * 4, policy, random.Random(seed).randint)
    else:
        Executor(model, kv).run(tokens, targets, policy, work)
    for exit in range(2):
        run, kept = ([*counts, 0, 0][exit] for counts in (work.exit_layer_tokens, work.exit_key_value_tokens))
        assert {seen[exit, name] for name in ("attn_out", "ffn_in", "ffn_out")} == {run}
        assert seen[exit, "key_value"] == kept and seen[exit, "query"] == run


@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_reported_flops_match_what_torch_counts(share):
    model, work = make_model((1, 2)), Work()
    tokens, targets = torch.randint(50, (2, 4, 24), generator=torch.Generator().manual_seed(3))
    exits = torch.where(torch.rand(96, generator=torch.Generator().manual_seed(4)) < share, 0, 1)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        Executor(model).run(tokens, targets, GivenExits(exits), work)
    assert executed_flops(model, work) == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_predicted_costs_are_those_of_execution():
    """Everybody at one exit: what is predicted of a token, save keys and values where none is read."""
    model, plain = make_model((1, 1, 1)), full_depth_flops(make_model((1, 1, 1)), 96, 24)
    tokens, targets = torch.randint(50, (2, 4, 24), generator=torch.Generator().manual_seed(0))
    key_value = 4 * 16 * 16 * 96
    for exit, cost in enumerate(exit_costs(model, 24, reads_out=False, decision_flops=0)):
        work = Work()
        Executor(model).run(tokens, targets, FixedExit(exit) if exit < 2 else None, work)
        owed = (2 - exit) * key_value  # of later layers, which nobody enters
        elsewhere = (1 if exit < 2 else 2) * key_value  # of the other exits
        assert executed_flops(model, work) + owed + elsewhere == pytest.approx(cost * plain)


def test_leaving_pays_less_where_the_exit_has_a_layer():
    model = make_model((1, 1, 1))
    bare = BlockwiseLM(model.config)
    for kind in ("state", "readout"):
        with_layer, without = (flops_break_even(lm, 24, 0, kind, classifier_flops=64) for lm in (model, bare))
        assert with_layer > without


def test_a_row_can_be_cut_back_and_grown_again():
    model = make_model((1, 1, 1))
    check_cutting_back(model, ReadingPolicy(model, False, 0.0))


def test_drafts_taken_deeper_leave_what_later_readers_need():
    """Drafts at exit 0 are verified: a token that leaves at exit 1 later sees there what it would have."""
    model = make_model((1, 1, 1))
    text, row = (
        torch.randint(50, (13,), generator=torch.Generator().manual_seed(0)),
        torch.zeros(13, dtype=torch.long),
    )
    decoder, plain = Decoder(model, 1, "recompute"), Decoder(model, 1)
    for place in range(12):
        decoder.feed(row[:1], text[place : place + 1], FixedExit(0))
    decoder.deepen(decoder.numbers(0, 0))
    plain.feed(row[:12], text[:12], None)
    found, wanted = (some.feed(row[12:], text[12:], FixedExit(1)).states for some in (decoder, plain))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
