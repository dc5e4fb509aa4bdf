"""What the benchmarks compare does the same work.

Compared are Transformers, the model cut off at an exit, one token per pass, and a plain loop over hidden
states.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.collect import collect_batch, hidden_states_loop
from benchmarks.decoding import cut_off, nobody_leaves, transformers_decode
from benchmarks.inputs import RandomWindows
from benchmarks.perplexity import half_leave, token_by_token
from offramp.checkpoints.checkpoint import Checkpoint
from offramp.models.pretrained import PretrainedLM, make_config
from offramp.routing.executor import Executor
from offramp.routing.generate import decode, generate
from offramp.routing.policies import FixedExit

TEXTS = [[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]]


@pytest.fixture
def pair():
    """Transformers' model of 5 layers, and the library's on its weights with exits after 2 and 4."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        tie_word_embeddings=True,
        initializer_range=0.3,
    )
    base = AutoModelForCausalLM.from_config(config).eval()
    return base, PretrainedLM(
        base, make_config(config, Checkpoint("tiny"), exits_after=(2, 4), window=24)
    ).eval()


def tokens(generations):
    return [row.tokens for row in generations]


@pytest.mark.parametrize("policy", [None, nobody_leaves], ids=["no policy", "nobody leaves"])
def test_transformers_generates_the_same_tokens(pair, policy):
    base, lm = pair
    ours = generate(decode(lm, TEXTS, 12, policy and policy(lm)), 2)
    assert tokens(ours) == transformers_decode(base, TEXTS, 12).tolist()
    assert (
        tokens(ours)[:1]
        == transformers_decode(base, TEXTS[:1], 12, assistant_early_exit=4, num_assistant_tokens=3).tolist()
    )


def test_a_forced_exit_says_what_the_model_cut_off_there_says_on_the_same_weights(pair):
    base, lm = pair
    shallow = cut_off(base, lm, 4)
    assert [len(block) for block in shallow.blocks] == [4] and base.config.num_hidden_layers == 5
    assert {weight.data_ptr() for weight in shallow.parameters()} < {
        weight.data_ptr() for weight in base.parameters()
    }
    forced = generate(decode(lm, TEXTS, 12, FixedExit(1), route_prompt=True), 2)
    assert tokens(forced) == tokens(generate(decode(shallow, TEXTS, 12), 2))


def test_one_token_per_pass_has_the_exits_and_losses_of_one_pass(pair):
    _, lm = pair
    text, targets = RandomWindows(3, 24, 61).batch(torch.arange(3))
    policy = half_leave(lm, text)
    exits, losses = token_by_token(lm, text, targets, policy)
    whole = Executor(lm).run(text, targets, policy)
    assert torch.equal(exits, whole.exit) and len(exits.unique()) > 1
    torch.testing.assert_close(losses, whole.loss, rtol=1e-4, atol=1e-5)


def test_the_loop_over_hidden_states_finds_the_columns_that_collect_writes(pair, tmp_path):
    base, lm = pair
    windows = RandomWindows(3, 24, 61)
    columns = collect_batch(lm, windows, tmp_path)
    for exit, statistics in enumerate(hidden_states_loop(base, lm, windows, tmp_path / "loop.safetensors")):
        for name, values in statistics.items():
            np.testing.assert_allclose(columns[f"{name}_{exit}"], values, rtol=1e-3, atol=1e-4)
