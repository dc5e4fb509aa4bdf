"""Small sub-word models for questions about training methods and exit signals: one recipe, arms that differ
in one switch.

Every arm is trained on the same windows of the same documents, random seed by random seed, with one CPU
thread. A fifth of the training windows is held back: unseen windows of seen documents, the evaluation set
that the report exit-labels mistook for unseen text.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from offramp.artifacts.artifact import Artifact
from offramp.corpus.windows import TokenWindows
from offramp.models.native import BlockwiseLM, ModelConfig
from offramp.routing.cost import full_depth_flops
from studies.common.product_path import (
    Recipe,
    SmallModel,
    SomeWindows,
    model_section,
    pretrain_section,
    study_data,
    trained,
)
from studies.common.text import StudyText

HELD_BACK = 5
"""Every fifth training window is held back."""

PUBLISHED = {
    "head": "shared",
    "tokens": "hard",
    "context": "repack",
    "embedding": "frozen",
    "later_rate": 0.1,
}
"""The switches as the report exit-labels had them."""

SWITCHES: dict[str, dict[str, Any]] = {
    "base": {},
    "head frozen": {"head": "frozen"},
    "head shared": {"head": "shared"},
    "hard tokens": {"tokens": "hard"},
    "hard tokens repacked": {"tokens": "hard", "context": "repack"},
    "embedding frozen": {"embedding": "frozen"},
    "published": PUBLISHED,
    "published, embedding trained": PUBLISHED | {"embedding": "trained"},
    "published, head frozen": PUBLISHED | {"head": "frozen"},
    "published, context kept": PUBLISHED | {"context": "keep"},
    "published, all tokens in context": PUBLISHED | {"context": "keep", "tokens": "all"},
    "block-wise": {"long": True},
    "joint": {"long": True, "method": "joint"},
    "final": {"long": True, "method": "final", "head": "shared"},
    "joint, three exits": {"long": True, "method": "joint", "block_layers": [1, 1, 2]},
}
"""What each arm changes: a method, block_layers, or switches of block-wise training. ``exited_state`` needs
no training.

Long arms take ``long_steps``: trained as briefly as the others, joint models gain nothing from depth and
there is nothing to route.
"""


def switch_data(text: StudyText, cache: Path, settings: Mapping[str, Any]) -> Artifact:
    """The documents that all arms learn from, made where missing; ``settings``: section switch_models of the
    shared ones."""
    return study_data(text, cache / "switch_models", settings, "bpe")


def trained_and_held_back(data: Artifact) -> tuple[SomeWindows, SomeWindows]:
    """The windows that arms are trained on, and those of the same documents that they are not."""
    windows = TokenWindows(data, "train")
    held_back = np.arange(len(windows)) % HELD_BACK == HELD_BACK - 1
    return SomeWindows(windows, np.flatnonzero(~held_back)), SomeWindows(windows, np.flatnonzero(held_back))


def recipe(arm: str, seed: int, cache: Path, settings: Mapping[str, Any]) -> Recipe:
    """What one arm and random seed is made from; joint and final get the steps that cost as many FLOPs as
    block-wise ones."""
    change = SWITCHES[arm]
    settings = {**settings, "steps": settings["long_steps"] if "long" in change else settings["steps"]}
    if "method" in change:
        settings["steps"] = equal_flops_steps(change["method"], settings)
    method = {name: change[name] for name in ("method", "head") if name in change}
    blockwise = {
        name: change[name] for name in ("context", "tokens", "embedding", "later_rate") if name in change
    }
    folder = cache / "switch_models" / arm.replace(", ", "-").replace(" ", "_") / str(seed)
    model = model_section(settings, "pre", change.get("block_layers"))
    pretrain = pretrain_section(settings, seed, 5, blockwise, **method)
    return Recipe.of(folder, model, pretrain, __name__, held_back=HELD_BACK)


def switch_model(recipe: Recipe, data: Artifact) -> SmallModel:
    """The model of a recipe with float16 states, made where missing."""
    return trained(recipe, data, trained_and_held_back(data)[0], "float16")


def equal_flops_steps(method: str, settings: Mapping[str, Any]) -> int:
    """Steps of joint or final training that execute as many FLOPs as ``settings["steps"]`` of block-wise
    training.

    A backward pass costs two forward ones. Block-wise training spends half of its steps on each block; those
    of the second run the first one forwards only.
    """
    first, rest, readout = _forward_flops(settings)
    blockwise = settings["steps"] / 2 * (3 * (first + readout) + first + 3 * (rest + readout))
    return round(blockwise / (3 * (first + rest + (2 if method == "joint" else 1) * readout)))


def _forward_flops(settings: Mapping[str, Any]) -> tuple[int, int, int]:
    """Per token: the first block, the others, and a readout."""

    def of(layers: int, vocab: int) -> int:
        config = ModelConfig(
            vocab_size=vocab,
            window=settings["window"],
            width=settings["width"],
            heads=settings["heads"],
            ffn_width=settings["ffn_width"],
            block_layers=(layers,),
        )
        return full_depth_flops(BlockwiseLM(config), 1, settings["window"])

    first, rest = settings["block_layers"][0], sum(settings["block_layers"][1:])
    return of(first, 0), of(rest, 0), of(first, settings["vocab_size"]) - of(first, 0)
