"""Sub-word models that differ in one switch: arms change what they say, cost what they should, and see the
same windows."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from offramp.artifacts.artifact import Artifact
from offramp.models.native import BlockwiseLM, ModelConfig
from studies.common.product_path import SmallModel
from studies.common.switch_models import (
    SWITCHES,
    equal_flops_steps,
    recipe,
    switch_data,
    switch_model,
    trained_and_held_back,
)
from studies.common.text import StudyText
from tests.fixtures.tiny_studies import tiny_job
from tests.fixtures.word_chains import chain_text


@pytest.fixture(scope="module")
def text() -> StudyText:
    return chain_text()


@pytest.fixture(scope="module")
def settings(text) -> dict[str, Any]:
    section = tiny_job("exit_signals", text, "corrected", Path()).shared["switch_models"]
    return {**section, "document_words": None, "steps": 12, "long_steps": 12}


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def data(text, cache, settings) -> Artifact:
    return switch_data(text, cache, settings)


def trained(arm: str, cache: Path, data: Artifact, settings: dict[str, Any]) -> SmallModel:
    return switch_model(recipe(arm, 0, cache, settings), data)


@pytest.mark.parametrize("arm", SWITCHES)
def test_every_arm_differs_from_the_base_in_what_it_says(arm, settings):
    base, other = (recipe(name, 0, Path(), settings) for name in ("base", arm))
    change = SWITCHES[arm]
    switches = {
        name: value
        for name, value in change.items()
        if name not in ("method", "head", "block_layers", "long")
    }
    assert other.pretrain.blockwise == base.pretrain.blockwise.model_copy(update=switches)
    assert other.pretrain.head == change.get("head", "per_block")
    assert other.model.block_layers == change.get("block_layers", settings["block_layers"])
    assert (other.pretrain.steps == base.pretrain.steps) == ("method" not in change)
    assert arm == "base" or other.folder != base.folder


def test_long_arms_take_longer(settings):
    longer = settings | {"long_steps": 20}
    steps = [recipe(arm, 0, Path(), longer).pretrain.steps for arm in ("base", "block-wise")]
    assert steps == [12, 20]


@pytest.mark.parametrize("method", ["joint", "final"])
def test_joint_and_final_training_execute_as_many_flops_as_block_wise(method, settings):
    """Counted by torch on one batch of each kind of step; a step more or less is the rounding."""
    sizes = {name: settings[name] for name in ("window", "width", "heads", "ffn_width")}
    layers = tuple(settings["block_layers"])
    config = ModelConfig(300, **sizes, block_layers=layers, tied=False, heads_per_exit=True)
    model, tokens = BlockwiseLM(config), torch.randint(300, (4, settings["window"]))

    def flops(exits: list[int], learning: list[torch.nn.Parameter]) -> int:
        for parameter in model.parameters():
            parameter.requires_grad_(any(parameter is one for one in learning))
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            x, loss = model.embed(tokens), torch.zeros(())
            for exit in range(max(exits) + 1):
                x = model.run_block(exit, x)
                if exit in exits:
                    loss = loss + model.logits(exit, x).logsumexp(-1).sum()
            loss.backward()
        return counter.get_total_flops()

    first = [
        *model.embedding.parameters(),
        *model.blocks[0].parameters(),
        *model.norms[0].parameters(),
        model.heads[0],
    ]
    second = [*model.blocks[1].parameters(), *model.norms[1].parameters(), model.heads[1]]
    blockwise = settings["steps"] / 2 * (flops([0], first) + flops([1], second))
    step = flops([0, 1] if method == "joint" else [1], list(model.parameters()))
    assert abs(equal_flops_steps(method, settings) * step - blockwise) < step


def test_held_back_windows_are_not_trained_on(data):
    learned, held_back = trained_and_held_back(data)
    assert set(learned.indices.tolist()).isdisjoint(held_back.indices.tolist())
    assert len(held_back) == pytest.approx((len(learned) + len(held_back)) / 5, abs=1)


def test_a_frozen_head_is_the_control_that_shares_block_0_and_a_shared_one_moves_on(cache, data, settings):
    moved, frozen = (
        trained(arm, cache, data, settings).load() for arm in ("published", "published, head frozen")
    )
    for one, other in zip(moved.blocks[0].parameters(), frozen.blocks[0].parameters()):
        assert torch.equal(one, other)
    assert not torch.equal(moved.readout_matrix(0), frozen.readout_matrix(0))


def test_what_stands_for_exited_tokens_is_chosen_when_a_model_is_loaded(cache, data, settings):
    model = trained("base", cache, data, settings)
    one, other = model.load(), model.load("input")
    assert (one.config.exited_state, other.config.exited_state) == ("output", "input")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters()))


@pytest.mark.parametrize("change", ["nothing", "steps", "code"])
def test_a_model_is_trained_again_where_settings_or_code_have_changed(
    text, cache, data, settings, tmp_path, monkeypatch, change
):
    before = trained("base", cache, data, settings)
    shutil.copytree(cache, tmp_path, dirs_exist_ok=True)
    if change == "code":
        monkeypatch.setattr("studies.common.cache.code_digest", lambda module, root: f"another {module}")
    changed = settings | ({"steps": 14} if change == "steps" else {})
    again = trained("base", tmp_path, switch_data(text, tmp_path, changed), changed)
    times = [model.lm.file("weights.safetensors").stat().st_mtime_ns for model in (before, again)]
    assert (times[0] == times[1]) == (change == "nothing")
    assert again.test.artifact.inputs["lm"] == again.lm.digest
