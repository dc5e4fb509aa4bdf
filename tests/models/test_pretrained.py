"""Checkpoints as block-wise models against Transformers itself, on tiny random models of every family."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from offramp.checkpoints.checkpoint import Checkpoint
from offramp.checkpoints.configuration import read_config
from offramp.checkpoints.tokenizers import load_tokenizer
from offramp.models.pretrained import PretrainedLM, load_pretrained, make_config
from offramp.nn.layers import StackedKeysValues
from offramp.routing.cost import executed_flops, full_depth_flops
from offramp.routing.executor import Executor, Work
from offramp.routing.policies import GivenExits
from tests.models.conftest import VOCAB, WINDOW

TINY = Checkpoint("tiny")
SIZES = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 40,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": WINDOW,
}
NEOX = {name: value for name, value in SIZES.items() if name != "num_key_value_heads"}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "llama, tied": LlamaConfig(**SIZES, tie_word_embeddings=True, attention_bias=True, mlp_bias=True),
    "llama, scaled positions": LlamaConfig(**SIZES, rope_parameters=LLAMA3),
    "mistral": MistralConfig(**SIZES, head_dim=16, sliding_window=WINDOW),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=12),
    "gpt2": GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=5, n_head=4, n_positions=WINDOW),
    "gpt_neox": GPTNeoXConfig(**NEOX, use_parallel_residual=True),
    "gpt_neox, sequential": GPTNeoXConfig(
        **NEOX,
        use_parallel_residual=False,
        rope_parameters={"partial_rotary_factor": 0.5, "rope_type": "default", "rope_theta": 10_000.0},
    ),
    "gpt_neox, no biases": GPTNeoXConfig(**NEOX, attention_bias=False),
}


def make_pair(config, exits_after=(1, 3), window=WINDOW):
    """Transformers' model and ours on its weights, far from initialisation so that every part matters."""
    torch.manual_seed(0)
    reference = AutoModelForCausalLM.from_config(config).eval()
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0.0, std=0.2)
    return reference, PretrainedLM(
        reference, make_config(config, TINY, exits_after=exits_after, window=window)
    ).eval()


@pytest.fixture(params=CONFIGS.values(), ids=CONFIGS)
def pair(request):
    return make_pair(request.param)


@torch.no_grad()
def test_states_after_every_block_and_logits_are_those_of_transformers(pair, batch):
    reference, model = pair
    expected, states = reference(batch[0], output_hidden_states=True), model(batch[0])
    for state, layers in zip(states[:-1], model.config.exits_after):
        torch.testing.assert_close(state, expected.hidden_states[layers], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(model.logits(2, states[-1]), expected.logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_exits_of_the_plain_model_are_the_logit_lens(pair, batch):
    """The head of the checkpoint, after its final norm, on the state of an earlier layer."""
    reference, model = pair
    truncated = reference(batch[0], output_hidden_states=True).hidden_states[3]
    expected = reference.get_output_embeddings()(model.norm(truncated))
    torch.testing.assert_close(model.logits(1, model(batch[0])[1]), expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_stacked_keys_and_values_are_those_of_every_layer(pair):
    _, model = pair
    x, layers = torch.randn(7, 32, generator=torch.Generator().manual_seed(2)), model.blocks[1]
    cos, sin = model.cos[3:10], model.sin[3:10]
    for layer, stacked in zip(layers, StackedKeysValues(layers)(x, cos, sin)):
        for part, expected in zip(stacked, layer.keys_values(layer.attention_input(x), cos, sin)):
            torch.testing.assert_close(part, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("exit", [0, 1, 2])
def test_tokens_sent_to_one_exit_score_as_the_model_cut_there(pair, batch, exit):
    _, model = pair
    tokens, targets = batch
    routed = Executor(model).run(tokens, targets, GivenExits(torch.full((targets.numel(),), exit)))
    log_p = model.logits(exit, model(tokens)[exit]).log_softmax(-1)
    assert (routed.exit == exit).all()
    torch.testing.assert_close(
        routed.loss, -log_p.gather(-1, targets[..., None])[..., 0], atol=1e-4, rtol=1e-4
    )


def test_weights_are_those_of_transformers_not_copies(pair):
    reference, model = pair
    addresses = {parameter.data_ptr() for parameter in model.parameters()}
    assert addresses == {parameter.data_ptr() for parameter in reference.parameters()}


def test_reported_flops_match_what_torch_counts(pair, batch):
    _, model = pair
    exits = torch.randint(3, (batch[0].numel(),), generator=torch.Generator().manual_seed(4))
    work, executor = Work(), Executor(model)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        executor.run(*batch, GivenExits(exits), work)
    assert executed_flops(model, work) == pytest.approx(counter.get_total_flops(), rel=0.02)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.logits(2, model(batch[0])[2])
    assert full_depth_flops(model, batch[0].numel(), WINDOW) == counter.get_total_flops()


def make_with_exit_layers(config):
    """A layer for each early exit, as far from the identity as the checkpoint's."""
    torch.manual_seed(0)
    reference = AutoModelForCausalLM.from_config(config).eval()
    for parameter in reference.parameters():
        torch.nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0.0, std=0.2)
    model = PretrainedLM(
        reference, make_config(config, TINY, exits_after=(1, 3), window=WINDOW, translator="block")
    ).eval()
    return reference, model


@torch.no_grad()
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_an_exit_layer_begins_as_the_identity_and_is_routed_as_it_reads_whole_sequences(config, batch):
    reference, model = make_with_exit_layers(config)
    states = model(batch[0])
    for exit in (0, 1):
        assert torch.equal(model.exit_states(exit, states[exit]), states[exit])
    for parameter in model.translators.parameters():
        torch.nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0.0, std=0.2)
    torch.testing.assert_close(
        model.logits(2, model(batch[0])[2]), reference(batch[0]).logits, atol=1e-4, rtol=1e-4
    )
    exits = torch.randint(3, (batch[0].numel(),), generator=torch.Generator().manual_seed(4))
    work, executor = Work(), Executor(model)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        executor.run(*batch, GivenExits(exits), work)
    assert executed_flops(model, work) == pytest.approx(counter.get_total_flops(), rel=0.02)
    for exit in (0, 1):
        read = model.exit_states(exit, states[exit])
        assert not torch.allclose(read, states[exit], atol=0.1)
        routed = executor.run(*batch, GivenExits(torch.full((batch[0].numel(),), exit)))
        log_p = model.logits(exit, read).log_softmax(-1)
        torch.testing.assert_close(
            routed.loss, -log_p.gather(-1, batch[1][..., None])[..., 0], atol=1e-4, rtol=1e-4
        )


SMOLLM2 = Path(__file__).resolve().parents[2] / "build/smollm2"
ENGLISH = (
    "The lighthouse keeper wrote in his journal every evening. On the first of November the wind came "
    "round to the north,\n"
    "and by midnight no ship could have passed the reef. He counted the lamps, trimmed the wick and "
    "waited for the morning. When it\n"
    "came, the sea was grey and quiet, and a small boat lay on the sand below the rocks with nobody in "
    "it."
)


@torch.no_grad()
@pytest.mark.skipif(not SMOLLM2.is_dir(), reason="build/smollm2 is not there; `make smollm2` makes it")
def test_smollm2_scores_english_as_under_transformers():
    checkpoint = Checkpoint(str(SMOLLM2))
    tokens = torch.tensor([load_tokenizer(checkpoint, read_config(checkpoint)).encode(ENGLISH).ids])
    model = load_pretrained(Checkpoint(str(SMOLLM2)), exits_after=[10, 20], window=tokens.shape[1])
    logits = model.logits(2, model(tokens)[2])
    reference = AutoModelForCausalLM.from_pretrained(SMOLLM2, dtype=torch.float32)(tokens, labels=tokens)
    torch.testing.assert_close(logits, reference.logits, atol=1e-4, rtol=0.0)
    loss = torch.nn.functional.cross_entropy(logits[0, :-1], tokens[0, 1:])
    assert loss.item() == pytest.approx(reference.loss.item(), abs=1e-5) and 5 < loss.exp() < 80
