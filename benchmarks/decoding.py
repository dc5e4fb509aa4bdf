"""Decoding SmolLM2 with early exit against Transformers, and against the same model cut off at the exit: the
ceiling.

Prompt and new tokens are both timed. A prompt runs at full depth, also where every new token leaves early,
except in the rows that say otherwise; a model that was cut off runs it only as deep as it goes. The larger
the batch, the larger is the prompts' part of the time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from benchmarks.blockwise_training import ClassifierPolicy
from benchmarks.inputs import prompts, smollm2
from benchmarks.measure import FEWEST, Median, Row, in_rounds, median_ratio
from offramp.exits.classifier import ExitClassifier
from offramp.models.blockwise import Blockwise
from offramp.models.pretrained import PretrainedLM
from offramp.routing.executor import Policy
from offramp.routing.generate import decode, speculate
from offramp.routing.policies import FixedExit
from offramp.routing.speculation import Speculation

if TYPE_CHECKING:
    from transformers import PreTrainedModel

EXITS = (10, 20)
"""Layers of SmolLM2's 30 after which an exit stands."""
PROMPT, NEW = 64, 64
DRAFTED = 24
"""New tokens where drafting is tried out anew, which takes Transformers many times as long."""
ROUNDS = {1: 6, 4: 5}
"""By the number of sequences in a batch."""

Variant = Callable[[int], object]
"""A way of decoding: makes so many new tokens."""


def run() -> Iterator[Row]:
    base, lm = smollm2(EXITS, PROMPT + NEW)
    for batch, rounds in ROUNDS.items():
        yield from rows(base, lm, prompts(batch, PROMPT), NEW, rounds)
    yield from drafting(base, lm, prompts(1, PROMPT), DRAFTED, FEWEST)


def rows(
    base: PreTrainedModel, lm: PretrainedLM, texts: Sequence[Sequence[int]], new: int, rounds: int
) -> Iterator[Row]:
    """The rows of two exits, and of speculation from the later one; ``texts`` are prompts of equal length."""
    batch, kept = f"batch{len(texts)}", Speculation(exit=1)
    list(speculate(lm, texts, new, kept))  # its trial, over before anything is timed
    times = seconds_by_variant(
        {
            "transformers": lambda count: transformers_decode(base, texts, count),
            "full": lambda count: list(decode(lm, texts, count)),
            "never": lambda count: list(decode(lm, texts, count, nobody_leaves(lm))),
            "speculation": lambda count: list(speculate(lm, texts, count, kept)),
        },
        new,
        rounds,
    )
    size = in_words(texts, new)
    theirs = f"Transformers' generate, {speed(times['transformers'], texts, new)}; {size}"
    yield Row(f"decode_full_depth_{batch}", speedup(times, "transformers", "full"), "x speed", None, theirs)
    yield Row(
        f"decode_never_exits_{batch}",
        speedup(times, "transformers", "never"),
        "x speed",
        ">= 0.97",
        f"{theirs}; a linear classifier asked at both exits lets nobody leave",
    )
    plain = f"our own plain decoding, {speed(times['full'], texts, new)}; {size}"
    state = (
        "drafting has switched itself off"
        if not kept.pays
        else f"{kept.accepted} of {kept.drafted} drafted tokens accepted"
    )
    yield Row(
        f"decode_speculation_{batch}",
        speedup(times, "full", "speculation"),
        "x speed",
        ">= 0.97",
        f"{plain}; one Speculation kept over texts, drafting after {EXITS[1]} layers: {state}",
    )
    yield from forced(base, lm, texts, new, rounds, exit=1, depth="two_thirds", bar=">= 0.95")
    yield from forced(base, lm, texts, new, rounds, exit=0, depth="one_third", bar=">= 0.85")


def forced(
    base: PreTrainedModel,
    lm: PretrainedLM,
    texts: Sequence[Sequence[int]],
    new: int,
    rounds: int,
    *,
    exit: int,
    depth: str,
    bar: str,
) -> Iterator[Row]:
    """The rows of everybody leaving at ``exit``, against a model that ends there.

    ``depth`` names that exit.
    """
    shallow = cut_off(base, lm, sum(lm.config.block_layers[: exit + 1]))
    times = seconds_by_variant(
        {
            "cut off": lambda count: list(decode(shallow, texts, count)),
            "forced": lambda count: list(decode(lm, texts, count, FixedExit(exit))),
            "prompt too": lambda count: list(decode(lm, texts, count, FixedExit(exit), route_prompt=True)),
        },
        new,
        rounds,
    )
    shorter = (
        f"plain decoding of the first {shallow.config.block_layers[0]} of {sum(lm.config.block_layers)} "
        "layers, prompt "
        f"included, {speed(times['cut off'], texts, new)}; {in_words(texts, new)}"
    )
    yield Row(
        f"decode_forced_{depth}_batch{len(texts)}",
        speedup(times, "cut off", "forced"),
        "x speed",
        bar,
        f"{shorter}; ours runs the prompt at full depth",
    )
    yield Row(
        f"decode_forced_{depth}_prompt_too_batch{len(texts)}",
        speedup(times, "cut off", "prompt too"),
        "x speed",
        bar,
        f"{shorter}; ours lets the prompt leave early too",
    )


def drafting(
    base: PreTrainedModel, lm: PretrainedLM, texts: Sequence[Sequence[int]], new: int, rounds: int
) -> Iterator[Row]:
    """The rows of one text whose every generation tries out drafting anew."""
    times = seconds_by_variant(
        {
            "assistant": lambda count: transformers_decode(
                base, texts, count, assistant_early_exit=EXITS[1], num_assistant_tokens=3
            ),
            "speculation": lambda count: list(speculate(lm, texts, count, Speculation(exit=1))),
            "full": lambda count: list(decode(lm, texts, count)),
        },
        new,
        rounds,
    )
    size = f"a new Speculation, its trial of drafting included; {in_words(texts, new)}"
    yield Row(
        "decode_speculation_trial",
        speedup(times, "full", "speculation"),
        "x speed",
        None,
        f"our own plain decoding, {speed(times['full'], texts, new)}; {size}",
    )
    yield Row(
        "decode_speculation_over_assistant_early_exit",
        speedup(times, "assistant", "speculation"),
        "x speed",
        None,
        f"Transformers' generate with assistant_early_exit {EXITS[1]} and 3 drafted tokens, "
        f"{speed(times['assistant'], texts, new)}; {size}",
    )


def seconds_by_variant(variants: Mapping[str, Variant], new: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of each way of decoding ``new`` tokens, taken in turn, after a few unmeasured tokens."""
    for variant in variants.values():
        variant(2)
    return dict(
        zip(
            variants,
            in_rounds([partial(variant, new) for variant in variants.values()], rounds),
        )
    )


def speedup(times: Mapping[str, Sequence[float]], slow: str, fast: str) -> Median:
    """How many times as fast the variant ``fast`` is."""
    return median_ratio(times[slow], times[fast])


def transformers_decode(
    base: PreTrainedModel, texts: Sequence[Sequence[int]], new: int, **options: int
) -> Tensor:
    """The new tokens (B, N) of Transformers' greedy ``generate``, which nothing ends early."""
    from transformers import GenerationConfig

    # The checkpoint's own configuration names tokens that end a text.
    base.generation_config = GenerationConfig(pad_token_id=0)
    tokens = torch.tensor(texts)
    out = base.generate(
        tokens, attention_mask=torch.ones_like(tokens), do_sample=False, max_new_tokens=new, **options
    )
    return out[:, tokens.shape[1] :]


def nobody_leaves(lm: Blockwise) -> Policy:
    """A linear classifier on the state, asked at every exit; no probability reaches the threshold."""
    return ClassifierPolicy(ExitClassifier(lm.config.width, []).eval(), 2.0)


def cut_off(base: PreTrainedModel, lm: PretrainedLM, layers: int) -> PretrainedLM:
    """The first ``layers`` layers of a Llama, then its final norm and head, on the same weights."""
    shallow = copy.deepcopy(base, {id(weight): weight for weight in base.parameters()})
    shallow.base_model.layers = shallow.base_model.layers[:layers]
    return PretrainedLM(shallow, replace(lm.config, exits_after=(), block_layers=(layers,))).eval()


def in_words(texts: Sequence[Sequence[int]], new: int) -> str:
    prompts_and_new = f"prompts of {len(texts[0])} tokens and {new} new ones, both timed"
    return f"SmolLM2-135M in fp32, batch {len(texts)}, {prompts_and_new}"


def speed(times: Sequence[float], texts: Sequence[Sequence[int]], new: int) -> str:
    return f"{len(texts) * new / sorted(times)[len(times) // 2]:.1f} tokens/s"
