"""The first block of exit-labels and loss-prediction, on a few thousand made-up words: its flaws are really
there."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from offramp.models.store import load_model
from offramp.training.snapshots import Snapshots
from studies.common.first_block import (
    BlockTraining,
    EmbeddedWindows,
    FirstBlock,
    first_block,
    read_words,
    train_block,
    untrained_model,
)
from studies.common.text import StudyText
from tests.fixtures.tiny_studies import tiny_job
from tests.fixtures.word_chains import chain_text

SEED = 42


@pytest.fixture(scope="module")
def text() -> StudyText:
    return chain_text()


@pytest.fixture(scope="module")
def settings(text) -> dict[str, Any]:
    return dict(tiny_job("exit_labels", text, "published", Path()).shared["first_block"])


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def block(text, cache, settings) -> FirstBlock:
    return first_block(text, cache, settings, SEED)


def test_windows_are_consecutive_words_predicting_the_next_and_batches_are_whole(text, settings):
    vocabulary, train, validation = read_words(text, settings)
    words = " ".join(document.text for document in text.train).lower().split()
    ids = [vocabulary[word] for word in words[: settings["vocabulary_words"]["sotu"]]]
    inputs, targets = train.batch(torch.tensor([0, 3]))
    assert inputs[1].tolist() == ids[24:32] and targets[1].tolist() == ids[25:33]
    assert len(train) == (1100 - 1) // 8 // 16 * 16 and len(validation) == 64
    # a document has 201 words
    assert train.documents(torch.tensor([25]))[0].tolist() == [0, 1, 1, 1, 1, 1, 1, 1]


def test_the_vocabulary_holds_validation_words_that_training_never_sees(text, settings):
    vocabulary, train, _ = read_words(text, settings)
    seen = set(train.batch(torch.arange(len(train)))[1].unique().tolist())
    assert "rare1x0" in vocabulary and vocabulary["rare1x0"] not in seen


def test_the_embedding_stays_as_initialised_and_the_second_block_has_not_begun(block, settings):
    trained = load_model(block.block0)
    untrained = untrained_model(block.train.vocab_size, settings, SEED)
    assert torch.equal(trained.embedding.weight, untrained.embedding.weight)
    assert not torch.equal(trained.heads[0], untrained.heads[0])
    assert torch.equal(trained.blocks[1][0].query.weight, untrained.blocks[1][0].query.weight)


def test_states_of_both_splits_are_those_of_the_one_block_model(block, settings):
    model, validation = load_model(block.lm), block.validation
    tokens, targets = validation.batch(torch.arange(len(validation)))
    states = model(tokens)[0]
    torch.testing.assert_close(block.states.hidden(0), states.flatten(0, 1))
    loss = F.cross_entropy(model.logits(0, states).flatten(0, 1), targets.flatten(), reduction="none")
    np.testing.assert_allclose(block.states.column("loss_0"), loss.detach().numpy(), rtol=1e-4, atol=1e-5)
    assert block.train_states.num_tokens == len(block.train) * settings["window"]
    assert block.lm.meta["validation_ppl"] == pytest.approx(float(np.exp(loss.mean().item())), rel=1e-4)
    assert block.lm.meta["validation_ppl"] == min(row["held_out_ppl"] for row in block.lm.meta["curve"])


def trained_at(block: FirstBlock) -> int:
    return block.block0.file("weights.safetensors").stat().st_mtime_ns


def test_what_was_made_is_opened_again(block, text, cache, settings):
    assert trained_at(first_block(text, cache, settings, SEED)) == trained_at(block)


@pytest.mark.parametrize("change", [{"learning_rate": 1e-4}, {"seed": 43}])
def test_other_settings_and_another_random_seed_make_everything_anew(
    block, text, cache, settings, tmp_path, change
):
    shutil.copytree(cache, tmp_path, dirs_exist_ok=True)
    seed = change.pop("seed", SEED)
    other = first_block(text, tmp_path, settings | change, seed)
    assert other.block0.digest != block.block0.digest
    assert other.states.artifact.inputs["lm"] == other.lm.digest != block.lm.digest


def test_changed_code_trains_again(block, text, cache, settings, tmp_path, monkeypatch):
    shutil.copytree(cache, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr("studies.common.cache.code_digest", lambda module, root: f"another {module}")
    other = first_block(text, tmp_path, settings, SEED)
    assert other.block0.params["code"] == "another studies.common.first_block" != block.block0.params["code"]
    assert trained_at(other) > trained_at(block)


def test_an_interrupted_training_goes_on_as_if_nothing_had_happened(block, settings, tmp_path):
    training = replace(BlockTraining.of(settings, SEED), max_epochs=3)
    whole, parts = (untrained_model(block.train.vocab_size, settings, SEED) for _ in range(2))
    straight = train_block(
        whole, 0, EmbeddedWindows(whole, block.train), training, Snapshots(tmp_path / "whole", 0.0)
    )
    for epochs in (1, 3):
        run = train_block(
            parts,
            0,
            EmbeddedWindows(parts, block.train),
            replace(training, max_epochs=epochs),
            Snapshots(tmp_path / "parts", 0.0),
        )
    assert run.curve == straight.curve and len(run.curve) == 3
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), parts.parameters()))
