"""The two invariants of the product: parallel equals sequential, and skipped means not called."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from offramp.models.native import BlockwiseLM, ModelConfig
from offramp.routing.cost import executed_flops, full_depth_flops, layer_saving
from offramp.routing.executor import Decision, Executor, Policy, Work
from offramp.routing.policies import GivenExits
from tests.fixtures.routing_reference import counting, decode


def make_model(
    block_layers=(1, 2),
    norm="pre",
    tied=True,
    heads_per_exit=False,
    exited_state="output",
    seed=0,
    vocab=50,
    key_value_heads=None,
):
    torch.manual_seed(seed)
    model = BlockwiseLM(
        ModelConfig(
            vocab_size=vocab,
            window=24,
            width=16,
            heads=2,
            ffn_width=24,
            block_layers=block_layers,
            norm=norm,
            tied=tied,
            heads_per_exit=heads_per_exit,
            exited_state=exited_state,
            key_value_heads=key_value_heads,
        )
    )
    for parameter in model.parameters():  # far from initialisation, so that every part matters
        torch.nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0.0, std=0.25)
    return model.eval()


class StatePolicy(Policy):
    """Leave where a fixed linear score of the state, and thus of nothing else, is positive."""

    def __init__(self, model, bias=0.0):
        generator = torch.Generator().manual_seed(7)
        self.weights, self.bias = (
            torch.randn(len(model.blocks), model.config.width, generator=generator),
            bias,
        )

    def score(self, exit, states):
        return states @ self.weights[exit] + self.bias

    def decide(self, arrivals):
        score = self.score(arrivals.exit, arrivals.states)
        return Decision(score > 0, score)


MODELS = {
    "block_layers": st.sampled_from([(1, 2), (2, 1), (1, 1, 2), (1, 1, 1, 1)]),
    "norm": st.sampled_from(["pre", "post"]),
    "tied": st.booleans(),
    "heads_per_exit": st.booleans(),
    "exited_state": st.sampled_from(["output", "input"]),
    "key_value_heads": st.sampled_from([None, 1]),
    "seed": st.integers(0, 10_000),
}


@settings(max_examples=40, deadline=None)
@given(
    **MODELS,
    kv=st.sampled_from(["propagate", "recompute", "drop"]),
    bias=st.sampled_from([-3.0, 0.0, 3.0]),
    length=st.integers(1, 24),
)
def test_one_parallel_pass_equals_decoding_token_by_token(bias, length, seed, kv, **shape):
    model = make_model(seed=seed, **shape)
    generator = torch.Generator().manual_seed(seed)
    tokens, targets = torch.randint(50, (2, 3, length), generator=generator)
    check_parallel_equals_sequential(model, kv, StatePolicy(model, bias), tokens, targets)


def check_parallel_equals_sequential(model, kv, policy, tokens, targets):
    """``policy`` leaves where its ``score(exit, state)`` is positive."""
    routed = Executor(model, kv).run(tokens, targets, policy)
    for row in range(len(tokens)):
        exits, losses = decode(
            model, tokens[row], targets[row], lambda exit, x: bool(policy.score(exit, x) > 0), kv
        )
        assert torch.equal(routed.exit[row], exits)
        torch.testing.assert_close(routed.loss[row], losses, atol=1e-4, rtol=1e-5)


@settings(max_examples=20, deadline=None)
@given(
    **MODELS,
    kv=st.sampled_from(["propagate", "recompute", "drop"]),
    bias=st.sampled_from([-3.0, 0.0, 3.0]),
    lengths=st.lists(st.integers(1, 24), min_size=1, max_size=4),
)
def test_texts_of_different_lengths_are_scored_as_each_alone(lengths, bias, seed, kv, **shape):
    model = make_model(seed=seed, **shape)
    tokens, targets = torch.randint(50, (2, len(lengths), 24), generator=torch.Generator().manual_seed(seed))
    check_ragged_equals_alone(model, kv, StatePolicy(model, bias), tokens, targets, lengths)


def check_ragged_equals_alone(model, kv, policy, tokens, targets, lengths):
    """Rows (B, T) up to their lengths; what stands behind them is neither run nor read out."""
    work, alone_work = Work(), Work()
    ragged = Executor(model, kv).run(tokens, targets, policy, work, torch.tensor(lengths))
    for row, length in enumerate(lengths):
        alone = Executor(model, kv).run(
            tokens[row : row + 1, :length], targets[row : row + 1, :length], policy, alone_work
        )
        assert torch.equal(ragged.exit[row, :length], alone.exit[0])
        torch.testing.assert_close(ragged.loss[row, :length], alone.loss[0], atol=1e-4, rtol=1e-5)
        assert ragged.loss[row, length:].isnan().all()
    assert work.tokens == sum(lengths) and work.layer_tokens == alone_work.layer_tokens
    assert work.readouts == alone_work.readouts and work.decided_tokens == alone_work.decided_tokens


@settings(max_examples=20, deadline=None)
@given(**MODELS)
def test_nothing_exits_is_the_unrouted_model_and_everything_exits_is_the_shallow_one(seed, **shape):
    model = make_model(seed=seed, **shape)
    tokens, targets = torch.randint(50, (2, 4, 24), generator=torch.Generator().manual_seed(seed))
    states = model(tokens)
    for exit in range(len(model.blocks)):
        routed = Executor(model).run(tokens, targets, GivenExits(torch.full((96,), exit)))
        log_p = model.logits(exit, states[exit]).log_softmax(-1)
        assert (routed.exit == exit).all()
        torch.testing.assert_close(
            routed.loss, -log_p.gather(-1, targets[..., None])[..., 0], atol=1e-5, rtol=1e-5
        )


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    share=st.floats(0, 1),
    blocks=st.sampled_from([(1, 2), (1, 1, 2)]),
    kv=st.sampled_from(["propagate", "recompute", "drop"]),
)
def test_skipped_means_not_called(seed, share, blocks, kv):
    """Tokens that pass through every matrix, counted by hooks, are the tokens that are reported."""
    model = make_model(blocks, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    tokens, targets = torch.randint(50, (2, 4, 24), generator=generator)
    exits = torch.where(
        torch.rand(96, generator=generator) < share,
        torch.randint(len(blocks), (96,), generator=generator),
        len(blocks) - 1,
    )
    seen, layers, work = Counter(), [layer for block in model.blocks for layer in block], Work()
    for number, layer in enumerate(layers):
        for name in ("query", "attn_out", "ffn_in", "ffn_out", "key_value"):
            getattr(layer, name).register_forward_hook(counting(seen, (number, name)))
    Executor(model, kv).run(tokens, targets, GivenExits(exits), work)
    run = list(work.layer_tokens)
    for number in range(len(layers)):
        reported = run[number] if number < len(run) else 0
        assert {seen[number, name] for name in ("query", "attn_out", "ffn_in", "ffn_out")} == {reported}
        assert seen[number, "key_value"] == (work.key_value_tokens[number] if number < len(run) else 0)
    expected, number = [], 0
    for block, count in enumerate(blocks):
        expected += [int((exits >= block).sum())] * count
    if kv == "recompute":  # carried along for later tokens of their sequence
        positions = torch.arange(24)
        expected = [
            int(
                (positions <= (exits.view(4, 24) >= block).mul(positions + 1).amax(1, keepdim=True) - 1).sum()
            )
            for block, count in enumerate(blocks)
            for _ in range(count)
        ]
    assert run == [tokens for tokens in expected if tokens]
    assert sum(work.readouts) == 96


def test_when_all_tokens_leave_later_blocks_are_not_called():
    model = make_model()
    model.blocks[1][0].register_forward_hook(lambda *_: pytest.fail("block 1 was called"))
    model.blocks[1][0].key_value.register_forward_hook(
        lambda *_: pytest.fail("keys of block 1 were computed")
    )
    tokens = torch.randint(50, (2, 24))
    work = Work()
    Executor(model).run(tokens, tokens, GivenExits(torch.zeros(48, dtype=torch.long)), work)
    assert layer_saving(model, work) == pytest.approx(2 / 3)


@pytest.mark.parametrize("kv", ["propagate", "recompute", "drop"])
@pytest.mark.parametrize("groups", [None, 1])
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_reported_flops_match_what_torch_counts(share, groups, kv):
    model = make_model((1, 2), vocab=64, key_value_heads=groups)
    tokens, targets = torch.randint(64, (2, 4, 24), generator=torch.Generator().manual_seed(3))
    exits = torch.where(torch.rand(96, generator=torch.Generator().manual_seed(4)) < share, 0, 1)
    work = Work()
    executor = Executor(model, kv)
    # the counter knows the plain attention kernel, not the CPU's fused one
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        executor.run(tokens, targets, GivenExits(exits), work)
    assert executed_flops(model, work) == pytest.approx(counter.get_total_flops(), rel=0.02)
    if share == 0:
        assert executed_flops(model, work) == full_depth_flops(model, 96, 24)


def test_a_token_is_not_affected_by_later_tokens():
    model, generator = make_model((1, 1, 1)), torch.Generator().manual_seed(1)
    tokens, targets = torch.randint(50, (2, 2, 24), generator=generator)
    policy, changed = StatePolicy(model), tokens.clone()
    changed[:, 12:] = torch.randint(50, (2, 12), generator=generator)
    before, after = (Executor(model).run(t, targets, policy) for t in (tokens, changed))
    assert torch.equal(before.exit[:, :12], after.exit[:, :12])
    torch.testing.assert_close(before.loss[:, :12], after.loss[:, :12], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("kv", ["propagate", "recompute", "drop"])
@pytest.mark.parametrize("exited_state", ["output", "input"])
@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_a_pass_that_is_given_the_first_block_ends_with_the_same_bits_and_counts(kv, exited_state, share):
    """Also the second time: what it was given is not written to."""
    model = make_model((1, 2, 1), exited_state=exited_state)
    tokens, targets = (torch.randint(50, (4, 24), generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    draw = torch.rand(tokens.numel(), generator=torch.Generator().manual_seed(3))
    policy = GivenExits(torch.where(draw < share / 2, 0, torch.where(draw < share, 1, 2)))
    executor = Executor(model, kv)
    given, kept = executor.first_block(tokens), executor.first_block(tokens)
    wanted_work = Work()
    wanted = executor.run(tokens, targets, policy, wanted_work)
    for _ in range(2):
        work = Work()
        routed = executor.run(tokens, targets, policy, work, after_first=given)
        for name in ("exit", "loss", "argmax"):
            assert torch.equal(getattr(routed, name), getattr(wanted, name)), name
        assert work == wanted_work
    assert torch.equal(given, kept)


def test_nobody_who_leaves_is_told_apart_from_somebody():
    assert Decision(torch.zeros(5, dtype=torch.bool)).leavers() is None
    for leaves in ([1, 0, 1, 1, 0], [1] * 5):
        decided = torch.tensor(leaves, dtype=torch.bool)
        gone, left = Decision(decided).leavers()
        assert gone.tolist() == [place for place, leaving in enumerate(leaves) if leaving]
        assert left.tolist() == [place for place, leaving in enumerate(leaves) if not leaving]
