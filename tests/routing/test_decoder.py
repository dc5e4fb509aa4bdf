"""Decoding equals the parallel pass, however the text is cut into calls, and runs what it reports."""

from __future__ import annotations

import random
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from offramp.errors import UserError
from offramp.routing.cost import executed_flops
from offramp.routing.decoder import Decoder
from offramp.routing.executor import Executor, Work
from offramp.routing.policies import GivenExits
from tests.fixtures.routing_reference import counting
from tests.routing.test_executor import MODELS, StatePolicy, make_model

KV = st.sampled_from(["propagate", "recompute", "drop"])


def feed_in_pieces(decoder, tokens, lengths, policy, draw):
    """Feed rows (B, T), each up to its length, in calls of random size.

    Returns exits and losses of the next token, by row.
    """
    found = [([], []) for _ in lengths]
    done = [0] * len(lengths)
    while any(have < length for have, length in zip(done, lengths)):
        sizes = [min(length - have, draw(0, 5)) for have, length in zip(done, lengths)]
        if not any(sizes):
            continue
        rows = torch.cat([torch.full((size,), row) for row, size in enumerate(sizes)])
        places = torch.cat([torch.arange(have, have + size) for have, size in zip(done, sizes)])
        fed = decoder.feed(rows, tokens[rows, places], policy)
        log_p = decoder.logits(fed.exit, fed.states).log_softmax(-1)
        for row, place, exit, scores in zip(rows.tolist(), places.tolist(), fed.exit.tolist(), log_p):
            found[row][0].append(exit)
            found[row][1].append(-scores[tokens[row, place + 1]])
        done = [have + size for have, size in zip(done, sizes)]
    return found


@settings(max_examples=60, deadline=None)
@given(
    **MODELS,
    kv=KV,
    bias=st.sampled_from([-3.0, 0.0, 3.0]),
    lengths=st.lists(st.integers(1, 23), min_size=1, max_size=4),
)
def test_decoding_in_any_pieces_equals_one_parallel_pass(bias, lengths, seed, kv, **shape):
    model = make_model(seed=seed, **shape)
    text = torch.randint(50, (len(lengths), 24), generator=torch.Generator().manual_seed(seed))
    check_pieces_equal_one_pass(model, kv, StatePolicy(model, bias), text, lengths, seed)


def check_pieces_equal_one_pass(model, kv, policy, text, lengths, seed=0, rtol=1e-5):
    """Rows of text (B, T) up to their lengths; the exits that were taken."""
    found = feed_in_pieces(
        Decoder(model, len(lengths), kv), text, lengths, policy, random.Random(seed).randint
    )
    for row, length in enumerate(lengths):
        whole = Executor(model, kv).run(
            text[row : row + 1, :length], text[row : row + 1, 1 : length + 1], policy
        )
        assert found[row][0] == whole.exit[0].tolist()
        torch.testing.assert_close(torch.stack(found[row][1]), whole.loss[0], atol=1e-4, rtol=rtol)
    return {exit for exits, _ in found for exit in exits}


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), blocks=st.sampled_from([(1, 2), (1, 1, 2)]), kv=KV)
def test_layer_calls_are_those_reported(seed, blocks, kv):
    model, generator, seen = make_model(blocks, seed=seed), torch.Generator().manual_seed(seed), Counter()
    decoder = Decoder(model, 2, kv)
    for number, layer in enumerate(layer for block in model.blocks for layer in block):
        for name in ("query", "ffn_out", "key_value"):
            getattr(layer, name).register_forward_hook(counting(seen, (number, name)))
    for block, stacked in enumerate(decoder._stacked):
        for number in (
            range(decoder._first_layer[block], decoder._first_layer[block] + blocks[block]) if stacked else ()
        ):
            stacked.project.register_forward_hook(
                lambda _m, inputs, _out, key=(number, "key_value"): seen.update({key: len(inputs[0])})
            )
    for _ in range(12):
        exits = torch.randint(len(blocks), (2,), generator=generator)
        decoder.feed(torch.arange(2), torch.randint(50, (2,), generator=generator), GivenExits(exits))
    for number, (run, kept) in enumerate(zip(decoder.work.layer_tokens, decoder.work.key_value_tokens)):
        assert seen[number, "query"] == seen[number, "ffn_out"] == run
        assert seen[number, "key_value"] == kept


def test_tokens_that_leave_and_are_never_asked_for_again_cost_nothing_more():
    model = make_model((1, 2))
    decoder = Decoder(model, 1)
    for _ in range(10):
        decoder.feed(
            torch.zeros(1, dtype=torch.long), torch.tensor([7]), GivenExits(torch.zeros(1, dtype=torch.long))
        )
    assert decoder.work == Work([10], [10], sum(range(1, 11)), [0], 10, 10)


def test_a_row_can_be_cut_back_and_grown_again():
    model = make_model((1, 1, 1))
    check_cutting_back(model, StatePolicy(model))


def check_cutting_back(model, policy):
    text = torch.randint(50, (20,), generator=torch.Generator().manual_seed(0))
    decoder, plain, row = Decoder(model, 1), Decoder(model, 1), torch.zeros(20, dtype=torch.long)
    decoder.feed(row[:14], text[:14], policy)
    decoder.forget(torch.tensor([6]))
    again, once = decoder.feed(row[6:], text[6:], policy), plain.feed(row, text, policy)
    assert again.exit.tolist() == once.exit[6:].tolist()
    torch.testing.assert_close(again.states, once.states[6:], atol=1e-5, rtol=1e-5)


def test_drafts_taken_deeper_are_full_depth_states():
    model = make_model((1, 2))
    text, row = (
        torch.randint(50, (12,), generator=torch.Generator().manual_seed(0)),
        torch.zeros(12, dtype=torch.long),
    )
    decoder, plain = Decoder(model, 1, "recompute"), Decoder(model, 1)
    decoder.feed(row[:5], text[:5], None)
    for place in range(5, 12):
        decoder.feed(row[:1], text[place : place + 1], GivenExits(row[:1]))
    states = decoder.deepen(decoder.numbers(0, 5))
    torch.testing.assert_close(states, plain.feed(row, text, None).states[5:], atol=1e-5, rtol=1e-5)


def test_a_row_longer_than_the_window_is_refused():
    row = torch.zeros(9, dtype=torch.long)
    with pytest.raises(UserError, match=r"9 tokens does not fit the 8 places"):
        Decoder(make_model(), 1, space=8).feed(row, row, None)
    with pytest.raises(UserError, match=r"25 tokens, .* window of 24; shorten"):
        Decoder(make_model(), 1, space=25)


def test_rows_that_go_on_are_copied_as_far_as_they_reach_not_as_far_as_they_may():
    """Of four rows of 24 places one has left.

    The keys and values of the others are picked out of their 5 places each.
    """
    model = make_model((1, 1))
    decoder, copied = Decoder(model, 4), []
    tokens = torch.randint(50, (4, 5), generator=torch.Generator().manual_seed(0))
    decoder.feed(torch.arange(4).repeat_interleave(4), tokens[:, :4].flatten(), None)

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            if function is torch.ops.aten.index_select.default and args[0].ndim == 4:
                copied.append(tuple(out.shape[:2]))
            return out

    with Watch():
        decoder.feed(torch.arange(4), tokens[:, 4], GivenExits(torch.tensor([1, 0, 1, 1])))
    assert copied == [(3, 5), (3, 5)]


@pytest.mark.parametrize("kv", ["propagate", "recompute", "drop"])
def test_decoding_reports_the_flops_that_torch_counts(kv):
    model = make_model((1, 2, 1), vocab=64)
    text = torch.randint(64, (3, 12), generator=torch.Generator().manual_seed(3))
    decoder, policy = Decoder(model, 3, kv), StatePolicy(model, 0.0)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        fed = [decoder.feed(torch.arange(3).repeat_interleave(4), text[:, :4].flatten(), policy)]
        fed += [decoder.feed(torch.arange(3), text[:, place], policy) for place in range(4, 12)]
        for step in fed:
            decoder.logits(step.exit, step.states)
    assert len(torch.cat([step.exit for step in fed]).unique()) == 3
    assert executed_flops(model, decoder.work) == pytest.approx(counter.get_total_flops(), rel=0.02)


@pytest.mark.parametrize(("exits", "most"), [([2, 2, 2, 2], 3), ([0, 0, 0, 0], 2), ([0, 1, 2, 2], 9)])
def test_a_step_reads_few_numbers_back(exits, most):
    """Each makes an accelerator wait: one per exit that is asked, and what a block's shapes hang on."""
    model = make_model((1, 2, 1), vocab=64)
    text, rows = torch.randint(64, (4, 8), generator=torch.Generator().manual_seed(3)), torch.arange(4)
    decoder, policy = Decoder(model, 4), GivenExits(torch.tensor(exits))
    for place in range(4):
        decoder.feed(rows, text[:, place], policy)
    read = []
    waits = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default}

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            masks = [part for part in args if isinstance(part, list) and part and torch.is_tensor(part[0])]
            masked = "index" in function.__name__ and any(mask[0].dtype == torch.bool for mask in masks)
            if function in waits or masked:
                read.append(function)
            return function(*args, **(kwargs or {}))

    with Watch():
        fed = decoder.feed(rows, text[:, 4], policy)
        decoder.logits(fed.exit, fed.states)
    assert fed.exit.tolist() == exits
    assert len(read) <= most, read
