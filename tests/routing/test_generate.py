"""Generation: what full depth or the routed pass would say next, drafted or not, alone or in a batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.errors import UserError
from offramp.routing.executor import Decision, Executor, Work
from offramp.routing.generate import Sampling, decode, generate, speculate
from offramp.routing.policies import FixedExit
from offramp.routing.speculation import Drafting, Speculation, most_frequent
from tests.routing.test_executor import StatePolicy, make_model

PROMPTS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3]]


def plain(model, prompt, new_tokens, exit=None):
    """Greedy continuation, the whole text run again for every token."""
    text, last = list(prompt), len(model.blocks) - 1
    exit = last if exit is None else exit
    for _ in range(new_tokens):
        states = model(torch.tensor([text]))
        text.append(int(model.logits(exit, states[exit][0, -1]).argmax()))
    return text[len(prompt) :]


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), blocks=st.sampled_from([(1, 2), (1, 1, 2)]))
def test_without_a_policy_a_batch_of_unequal_prompts_is_greedy_full_depth_decoding(seed, blocks):
    model = make_model(blocks, seed=seed)
    for prompt, found in zip(PROMPTS, generate(decode(model, PROMPTS, 12), 3)):
        assert found.tokens == plain(model, prompt, 12)
        assert set(found.exits) == {len(blocks) - 1}


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    bias=st.sampled_from([-2.0, 0.0, 2.0]),
    kv=st.sampled_from(["propagate", "recompute", "drop"]),
)
def test_routed_generation_takes_the_exits_and_tokens_of_one_parallel_pass_over_its_own_text(seed, bias, kv):
    model = make_model((1, 1, 2), seed=seed)
    policy = StatePolicy(model, bias)
    for prompt, found in zip(
        PROMPTS, generate(decode(model, PROMPTS, 12, policy, kv=kv, route_prompt=True), 3)
    ):
        text = torch.tensor([[*prompt, *found.tokens]])
        routed = Executor(model, kv).run(text[:, :-1], text[:, 1:], policy)
        assert routed.exit[0, len(prompt) - 1 :].tolist() == found.exits
        assert routed.argmax[0, len(prompt) - 1 :].tolist() == found.tokens


class PromptStays(StatePolicy):
    """Like its parent, but that the first ``prompt`` tokens go to full depth."""

    def __init__(self, model, bias, prompt):
        super().__init__(model, bias)
        self.prompt = prompt

    def decide(self, arrivals):
        decision = super().decide(arrivals)
        return Decision(decision.leaves & (arrivals.position >= self.prompt), decision.confidence)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    bias=st.sampled_from([-2.0, 0.0, 2.0]),
    kv=st.sampled_from(["propagate", "recompute", "drop"]),
)
def test_unless_asked_otherwise_the_prompt_goes_to_full_depth_and_what_follows_is_routed(seed, bias, kv):
    model = make_model((1, 1, 2), seed=seed)
    for prompt, found in zip(
        PROMPTS, generate(decode(model, PROMPTS, 12, StatePolicy(model, bias), kv=kv), 3)
    ):
        text = torch.tensor([[*prompt, *found.tokens]])
        routed = Executor(model, kv).run(text[:, :-1], text[:, 1:], PromptStays(model, bias, len(prompt)))
        assert routed.exit[0, len(prompt) - 1 :].tolist() == found.exits and found.exits[0] == 2
        assert routed.argmax[0, len(prompt) - 1 :].tolist() == found.tokens


def test_thresholds_that_fall_along_the_text_count_from_the_end_of_the_prompt():
    class Counts(StatePolicy):
        def decide(self, arrivals):
            if arrivals.exit == 0:
                seen.append(arrivals.since.tolist())
            return super().decide(arrivals)

    seen: list = []
    model = make_model((1, 2))
    generate(decode(model, PROMPTS[:2], 4, Counts(model, -9.0), route_prompt=True), 2)
    assert seen == [[0] * 7, [0, 0], [1, 1], [2, 2]]


def test_a_forced_exit_is_the_shallow_model_except_for_the_prompt():
    model = make_model((1, 2))
    (found,) = generate(decode(model, [[7]], 10, FixedExit(0), route_prompt=True), 1)
    assert found.tokens == plain(model, [7], 10, exit=0) and set(found.exits) == {0}


def as_if_later_blocks_did_nothing(model):
    for block in model.blocks[1:]:
        for layer in block:
            torch.nn.init.zeros_(layer.attn_out.weight)
            torch.nn.init.zeros_(layer.ffn_out.weight)
    for norm in model.norms[1:]:
        norm.load_state_dict(model.norms[0].state_dict())
    return model


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    length=st.integers(1, 5),
    confidence=st.sampled_from([0.0, 0.3, 0.9]),
    agreeing=st.booleans(),
)
def test_speculation_never_changes_a_token(seed, length, confidence, agreeing):
    model = make_model((1, 1, 2), seed=seed)
    if agreeing:
        as_if_later_blocks_did_nothing(model)
    speculation = Speculation(exit=0, length=length, confidence=confidence)
    speculation.TRIAL = 10**9  # it goes on whether it pays or not
    greedy = generate(decode(model, PROMPTS, 16), 3)
    assert [row.tokens for row in generate(speculate(model, PROMPTS, 16, speculation), 3)] == [
        row.tokens for row in greedy
    ]
    if agreeing:
        assert speculation.accepted == speculation.drafted
    assert speculation.drafted or confidence


def test_drafts_are_not_computed_twice():
    model = as_if_later_blocks_did_nothing(make_model((1, 2)))
    work, speculation = Work(), Speculation(exit=0, length=3, confidence=0.0)
    speculation.TRIAL = 10**9
    generate(speculate(model, [[7]], 15, speculation, work=work), 1)
    assert speculation.accepted == speculation.drafted == 1 + 2 + 3 + 2
    assert (
        work.layer_tokens == [15] * 3
    )  # the prompt and all new tokens but the last, once; one draft was cut by the end


def test_drafts_begin_short_and_grow_while_they_are_right():
    drafting, reached = Drafting(length=6), []
    for drafted, accepted in (
        (1, 1),
        (2, 2),
        (4, 4),
        (6, 6),
        (6, 5),
        (0, 0),
        (5, 0),
        (4, 0),
        (3, 0),
        (2, 0),
        (1, 0),
    ):
        drafting.count(drafted, accepted, min(drafted, accepted + 1))
        reached.append(drafting.reach)
    assert reached == [2, 4, 6, 6, 5, 5, 4, 3, 2, 1, 1] and (drafting.drafted, drafting.accepted) == (
        34,
        18,
    )


def cycles(speculation, exit, measured, draft=0.5, verify=1.0):
    """Cycles of a draft of one token from an exit, with their seconds and tokens per row."""
    for seconds, tokens in measured:
        drafting = speculation.by_exit[exit]
        drafting.time(draft, 1, verify)
        drafting.count(1, int(tokens > 1), 1)
        drafting.cycle_seconds.append(seconds)
        drafting.cycle_tokens.append(tokens)
        speculation.judge(exit)


def test_every_exit_is_tried_and_then_the_one_that_promises_most_drafts():
    speculation = Speculation(length=6, plain_seconds=[1.0])
    speculation.begin(3, (), 50)
    assert speculation.next_exit == 0
    cycles(speculation, 0, [(1.5, 2.0)] * 3, draft=0.1, verify=0.9)
    assert speculation.next_exit == 1
    cycles(speculation, 1, [(1.5, 1.0)] * 3, draft=0.5, verify=0.5)
    assert speculation.by_exit[1].given_up and speculation.next_exit == 2
    cycles(speculation, 2, [(1.2, 2.0)] * 3, draft=0.6, verify=0.2)
    assert speculation.next_exit == 0 and speculation.pays
    cycles(speculation, 0, [(3.0, 1.0)] * 20, draft=0.1, verify=0.9)
    assert speculation.next_exit == 2  # text changes, and what was measured last counts


def test_drafts_are_as_long_as_their_cost_and_what_is_right_of_them_make_worth_while():
    sure, unsure, dear = Drafting(8), Drafting(8), Drafting(8)
    for drafting, accepted, seconds in ((sure, 98, 0.1), (unsure, 59, 0.1), (dear, 59, 1.0)):
        drafting.count(98, accepted, 98)
        drafting.time(seconds, 1, 1.0)
    assert (sure.best_length, unsure.best_length, dear.best_length) == (8, 3, 1)
    assert unsure.speed(2) == pytest.approx((1 + 0.6 + 0.36) / (3 * 0.1 + 1.0))


@pytest.mark.parametrize("exit", [0, None])
def test_drafts_from_part_of_the_vocabulary_change_no_token_and_hold_no_other(exit):
    model, vocabulary = make_model((1, 1, 2), seed=2), torch.arange(0, 50, 3)
    greedy = [row.tokens for row in generate(decode(model, PROMPTS, 16), 3)]
    speculation = Speculation(exit, 3, confidence=0.0, vocabulary=vocabulary)
    speculation.TRIAL = 10**9 if exit == 0 else 2
    assert [row.tokens for row in generate(speculate(model, PROMPTS, 16, speculation), 3)] == greedy
    assert speculation.drafted and speculation.readout(model.readout_matrix(0)).shape[0] == 17
    if exit is None:
        assert sorted(speculation.by_exit) == [0, 1]


def test_the_most_frequent_tokens_are_those_and_what_is_kept_anyway():
    counts = torch.tensor([5, 0, 9, 7, 7, 1])
    assert most_frequent(counts, 2).tolist() == [2, 3]
    assert most_frequent(counts, 2, kept={1}).tolist() == [1, 2, 3]


def test_speculation_that_does_not_pay_is_given_up():
    speculation = Speculation(exit=0, plain_seconds=[1.0, 1.0])
    speculation.begin(1, (), 50)
    cycles(speculation, 0, ((1.5, 1.0), (1.5, 2.0), (1.5, 1.0)))
    assert not speculation.pays
    work = Work()
    generate(speculate(make_model((1, 2)), [[7]], 10, speculation, work=work), 1)
    assert work.layer_tokens == [10] * 3 and work.readouts == [0, 10] and speculation.drafted == 3


def test_rows_end_at_a_stop_token_and_the_others_go_on():
    model = make_model((1, 2), seed=1)
    whole = [row.tokens for row in generate(decode(model, PROMPTS, 12), 3)]
    stop = whole[0][3]
    cut = [tokens[: tokens.index(stop) + 1] if stop in tokens else tokens for tokens in whole]
    assert [row.tokens for row in generate(decode(model, PROMPTS, 12, stop={stop}), 3)] == cut
    speculation = Speculation(exit=0, confidence=0.0)
    assert [row.tokens for row in generate(speculate(model, PROMPTS, 12, speculation, stop={stop}), 3)] == cut


def test_sampling_repeats_with_its_seed_and_follows_the_softmax():
    model = make_model((1, 2))

    def draw(seed, **others):
        return generate(decode(model, [[7]] * 400, 1, sampling=Sampling(seed=seed, **others)), 400)

    tokens = [row.tokens[0] for row in draw(0)]
    assert tokens == [row.tokens[0] for row in draw(0)] != [row.tokens[0] for row in draw(1)]
    p = model.logits(1, model(torch.tensor([[7]]))[1][0, -1]).softmax(-1)
    found = torch.bincount(torch.tensor(tokens), minlength=50) / 400
    assert (found - p).abs().max() < 4 * (p * (1 - p) / 400).sqrt().max()
    best = int(p.argmax())
    assert (
        {row.tokens[0] for row in draw(2, top_p=0.01)}
        == {row.tokens[0] for row in draw(2, temperature=1e-4)}
        == {best}
    )


@pytest.mark.parametrize(
    "ask, message",
    [
        (lambda model: Sampling(temperature=0.0), r"temperature = 0\.0: give a number from 1e-06 on"),
        (lambda model: Sampling(seed=2**63), "seed = 9223372036854775808: give a whole number from 0"),
        (lambda model: Speculation(exit=0, length=0), "length = 0: a draft has at least one token"),
        (
            lambda model: next(
                speculate(model, [[1]], 5, Speculation(0, vocabulary=torch.arange(9)), stop={9})
            ),
            "token 9, which ends a text, is not in it",
        ),
        (
            lambda model: next(speculate(model, [[1]], 5, Speculation(0, vocabulary=torch.tensor([50])))),
            "vocabulary of drafts: its 1 tokens are not some of 0 to 49",
        ),
        (lambda model: Sampling(top_p=1.5), r"top_p = 1\.5"),
        (lambda model: next(decode(model, [[]], 5)), "prompt is empty"),
        (lambda model: next(decode(model, [[1] * 20], 6)), r"25 tokens, .* window of 24"),
        (lambda model: next(speculate(model, [[1]], 5, Speculation(exit=1))), "exit 1 is not one of 0 to 0"),
    ],
)
def test_what_cannot_be_done_is_said(ask, message):
    with pytest.raises(UserError, match=message):
        ask(make_model((1, 2)))


def test_prompt_and_new_tokens_may_fill_the_window_and_one_more():
    """The last token is made, and never read."""
    model, prompt = make_model((1, 1)), [[1] * 20]
    plain = generate(decode(model, prompt, 5), 1)[0].tokens
    assert len(plain) == 5
    assert generate(speculate(model, prompt, 5, Speculation(exit=0, confidence=0.0)), 1)[0].tokens == plain
