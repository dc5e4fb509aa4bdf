"""Decoding SmolLM2 with early exit against economize (github.com/Thiggel/economize).

That is the fastest other tool that could be run for the comparison. Both exit without asking the vocabulary:
economize by CALM's state confidence after every layer from the exit on, Offramp after layers 10 and 20. With
threshold 0 every token leaves at the first, with 1 none does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import torch

from benchmarks.decoding import (
    EXITS,
    NEW,
    PROMPT,
    in_words,
    nobody_leaves,
    seconds_by_variant,
    speed,
    speedup,
)
from benchmarks.inputs import prompts, smollm2
from benchmarks.measure import Row, Skipped
from offramp.models.pretrained import PretrainedLM
from offramp.routing.executor import Policy
from offramp.routing.generate import decode
from offramp.routing.policies import FixedExit

if TYPE_CHECKING:
    from transformers import PreTrainedModel

VERSION = "0.3.2"
BATCHES, ROUNDS = (1, 4), 5


def run() -> Iterator[Row]:
    try:
        installed = version("economize")
    except PackageNotFoundError:
        installed = "none"
    if installed != VERSION:
        raise Skipped(
            f"it compares with economize {VERSION}, and found {installed}; run `pip install -e '.[bench]'`"
        )
    base, lm = smollm2(EXITS, PROMPT + NEW)
    for batch in BATCHES:
        yield from rows(base, lm, prompts(batch, PROMPT), NEW, ROUNDS)


def rows(
    base: PreTrainedModel, lm: PretrainedLM, texts: Sequence[Sequence[int]], new: int, rounds: int
) -> Iterator[Row]:
    """One row for nobody leaving, and one for everybody leaving at each exit."""
    for name, policy, layers, threshold in (
        ("never_exits", nobody_leaves(lm), EXITS[0], 1.0),
        ("forced_two_thirds", FixedExit(1), EXITS[1], 0.0),
        ("forced_one_third", FixedExit(0), EXITS[0], 0.0),
    ):
        times = decoding_seconds(
            base, lm, texts, new, rounds, policy=policy, layers=layers, threshold=threshold
        )
        yield Row(
            f"decode_{name}_over_economize_batch{len(texts)}",
            speedup(times, "economize", "offramp"),
            "x speed",
            None,
            f"economize {VERSION}, CALM with state confidence, threshold {threshold:g} from layer {layers} "
            "on, "
            f"{speed(times['economize'], texts, new)}; ours {speed(times['offramp'], texts, new)}; "
            f"{in_words(texts, new)}",
        )


def decoding_seconds(
    base: PreTrainedModel,
    lm: PretrainedLM,
    texts: Sequence[Sequence[int]],
    new: int,
    rounds: int,
    *,
    policy: Policy,
    layers: int,
    threshold: float,
) -> dict[str, list[float]]:
    """Seconds of economize, asking from ``layers`` on with ``threshold``, and of Offramp with ``policy``."""
    import economize
    from economize.techniques.dynamic_depth import CalmConfig

    theirs = economize.apply(base, CalmConfig(confidence="state", threshold=threshold, min_layer=layers))
    times = seconds_by_variant(
        {
            "economize": lambda count: theirs.decode_batch([torch.tensor(text) for text in texts], count),
            "offramp": lambda count: list(decode(lm, texts, count, policy)),
        },
        new,
        rounds,
    )
    theirs.detach()
    return times
