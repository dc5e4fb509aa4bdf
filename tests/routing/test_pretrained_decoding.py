"""Parallel equals sequential on Transformers' architectures; full-depth generation is Transformers' own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from offramp.checkpoints.checkpoint import Checkpoint
from offramp.models.pretrained import load_pretrained
from offramp.routing.executor import Executor, Work
from offramp.routing.generate import decode, generate, speculate
from offramp.routing.policies import FixedExit, GivenExits
from offramp.routing.speculation import Speculation
from tests.models.test_pretrained import CONFIGS, VOCAB, make_with_exit_layers, pair  # noqa: F401
from tests.routing.test_decoder import check_pieces_equal_one_pass
from tests.routing.test_executor import StatePolicy

SMOLLM2 = Path(__file__).resolve().parents[2] / "build/smollm2"


class HalfLeaves(StatePolicy):
    """Like its parent, with half of the tokens of ``text`` above zero at every exit."""

    def __init__(self, model, text):
        super().__init__(model)
        with torch.no_grad():
            scores = [
                (states @ weights).flatten().sort().values
                for states, weights in zip(model(text), self.weights)
            ]
        # between two tokens: one on the border itself would leave or stay by rounding
        self.middle = [found[len(found) // 2 - 1 : len(found) // 2 + 1].mean() for found in scores]

    def score(self, exit, states):
        return super().score(exit, states) - self.middle[exit]


@torch.no_grad()
def transformers_losses(theirs, layers, tokens, targets):
    """Losses (B, T) where every token runs ``layers`` (B, T) of Transformers' own and later ones find its
    state as it left.

    The states of tokens that left are put back after every layer; the final norm and head then read each
    where it is.
    """
    stack = next(
        part
        for part in (getattr(theirs.base_model, name, None) for name in ("layers", "h"))
        if part is not None
    )

    def keeps(number):
        def hook(_layer, given, named, out):
            before = given[0] if given else named["hidden_states"]
            return torch.where((layers > number).unsqueeze(-1), out, before)

        return hook

    hooks = [
        layer.register_forward_hook(keeps(number), with_kwargs=True) for number, layer in enumerate(stack)
    ]
    logits = theirs(tokens, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(
        tokens.shape
    )


def check_against_transformers(theirs, model, text):
    """A third of the tokens, at random, leaves at each exit; propagated keys and values."""
    tokens, targets = text[:, :-1], text[:, 1:]
    exits = torch.randint(3, tokens.shape, generator=torch.Generator().manual_seed(5))
    depth = torch.tensor(model.config.block_layers).cumsum(0)[exits]
    routed = Executor(model).run(tokens, targets, GivenExits(exits.flatten()))
    torch.testing.assert_close(
        routed.loss, transformers_losses(theirs, depth, tokens, targets), atol=1e-4, rtol=0
    )


def test_routed_scores_are_those_of_transformers_layers_with_what_left_held(pair):  # noqa: F811
    check_against_transformers(
        *pair, torch.randint(VOCAB, (3, 24), generator=torch.Generator().manual_seed(2))
    )


@pytest.mark.parametrize("kv", ["propagate", "recompute", "drop"])
def test_modules_of_the_checkpoint_run_for_as_many_tokens_as_are_reported(pair, kv):  # noqa: F811
    """The calls of scoring and decoding are those reported.

    Hooks count them on the last matrix of attention and of feed-forward of each of Transformers' layers.
    """
    _, model = pair
    text = torch.randint(VOCAB, (3, 24), generator=torch.Generator().manual_seed(2))
    policy, layers = HalfLeaves(model, text), [layer for block in model.blocks for layer in block]
    ran = torch.zeros(len(layers), 2, dtype=torch.long)

    def count(layer, part):
        def hook(_module, given, _out):
            ran[layer, part] += given[0].numel() // given[0].shape[-1]

        return hook

    for number, layer in enumerate(layers):
        for part, module in enumerate(layer.writers):
            module.register_forward_hook(count(number, part))
    work = Work()
    Executor(model, kv).run(text[:, :-1], text[:, 1:], policy, work)
    assert ran.T.tolist() == [work.layer_tokens] * 2 and work.layer_tokens[-1] < work.tokens
    for early in (policy, FixedExit(0)):
        ran.zero_()
        list(decode(model, text[:, :4].tolist(), 12, early, kv=kv, work=(work := Work())))
        assert ran.T.tolist() == [work.layer_tokens] * 2
    assert work.layer_tokens == [45, 12, 12, 12, 12]  # the prompts alone go on from the first exit


@pytest.mark.parametrize("kv", ["propagate", "recompute", "drop"])
def test_decoding_in_pieces_equals_one_parallel_pass(pair, kv):  # noqa: F811
    _, model = pair
    text = torch.randint(VOCAB, (3, 24), generator=torch.Generator().manual_seed(2))
    assert check_pieces_equal_one_pass(model, kv, HalfLeaves(model, text), text, [23, 9, 16], rtol=0) == {
        0,
        1,
        2,
    }


@pytest.mark.parametrize("kv", ["propagate", "recompute", "drop"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox"])
def test_exits_with_layers_of_their_own_decode_as_they_are_scored(name, kv):
    _, model = make_with_exit_layers(CONFIGS[name])
    with torch.no_grad():
        for parameter in model.translators.parameters():
            torch.nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0.0, std=0.2)
    text = torch.randint(VOCAB, (3, 24), generator=torch.Generator().manual_seed(2))
    assert check_pieces_equal_one_pass(model, kv, HalfLeaves(model, text), text, [23, 9, 16], rtol=0) == {
        0,
        1,
        2,
    }


def test_full_depth_generation_drafted_or_not_is_that_of_transformers(pair):  # noqa: F811
    theirs, model = pair
    theirs.generation_config.eos_token_id = None  # random weights end anywhere
    for prompt in ([5, 3, 8, 1], [7]):
        expected = theirs.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=12, pad_token_id=0
        )[0, len(prompt) :].tolist()
        assert generate(decode(model, [prompt], 12), 1)[0].tokens == expected
        assert (
            generate(speculate(model, [prompt], 12, Speculation(exit=0, confidence=0.0)), 1)[0].tokens
            == expected
        )


@pytest.mark.skipif(not SMOLLM2.is_dir(), reason="build/smollm2 is not there; `make smollm2` makes it")
def test_smollm2_generates_as_under_transformers_and_decodes_as_it_is_scored():
    from tokenizers import Tokenizer
    from transformers import AutoModelForCausalLM

    model = load_pretrained(Checkpoint(str(SMOLLM2)), exits_after=[10, 20], window=96)
    tokenizer = Tokenizer.from_file(str(SMOLLM2 / "tokenizer.json"))
    prompt = tokenizer.encode(
        "The history of early exits from motorways begins with", add_special_tokens=False
    ).ids
    theirs = AutoModelForCausalLM.from_pretrained(SMOLLM2, dtype=torch.float32)
    expected = theirs.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=24)[
        0, len(prompt) :
    ].tolist()
    assert generate(decode(model, [prompt], 24), 1)[0].tokens == expected
    policy = HalfLeaves(model, torch.tensor([prompt]))
    (found,) = generate(decode(model, [prompt], 24, policy, route_prompt=True), 1)
    assert len(set(found.exits)) > 1
    text = torch.tensor([[*prompt, *found.tokens]])
    routed = Executor(model).run(text[:, :-1], text[:, 1:], policy)
    assert routed.exit[0, len(prompt) - 1 :].tolist() == found.exits
    assert routed.argmax[0, len(prompt) - 1 :].tolist() == found.tokens
    check_pieces_equal_one_pass(model, "propagate", policy, text, [text.shape[1] - 1], rtol=0)
    check_against_transformers(theirs, model, text)
