"""Word-level models without the reports' flaws: they learn, know unknown words, and are trained again when
code changes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from studies.common.product_path import SmallModel, beginning, some_documents
from studies.common.text import Document, StudyText
from studies.common.word_models import word_models
from tests.fixtures.tiny_studies import tiny_job
from tests.fixtures.word_chains import chain_text, word_chains


@pytest.fixture(scope="module")
def text() -> StudyText:
    return chain_text()


@pytest.fixture(scope="module")
def settings(text) -> dict[str, Any]:
    section = tiny_job("exit_labels", text, "corrected", Path()).shared["word_models"]
    return {**section, "document_words": None, "steps": 40, "evaluate_every": 10}


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def models(text, cache, settings) -> list[SmallModel]:
    return word_models(text, cache, settings, [0, 1])


def trained_at(models: list[SmallModel]) -> list[int]:
    return [model.lm.file("weights.safetensors").stat().st_mtime_ns for model in models]


def test_models_learn_and_know_unknown_words(models):
    assert [model.seed for model in models] == [0, 1]
    for model in models:
        assert model.data.meta["splits"]["test"]["unknown_rate"] > 0  # rare words, each in one document only
        assert model.test.num_exits == 2
        loss = torch.from_numpy(model.test.column("loss_1").copy()).mean()
        assert loss.exp() < model.data.meta["vocab_size"] * 0.8


def test_every_exit_has_a_head_of_its_own_and_the_embedding_is_trained(models):
    one, other = (model.load() for model in models)
    assert len(one.heads) == 2 and not torch.equal(one.heads[0], one.heads[1])
    assert not torch.equal(one.embedding.weight, other.embedding.weight)


def test_models_of_the_same_code_are_found_again(models, text, cache, settings):
    assert trained_at(word_models(text, cache, settings, [0, 1])) == trained_at(models)


@pytest.mark.parametrize("change", ["code", "steps"])
def test_changed_code_or_settings_train_again(models, text, cache, settings, tmp_path, monkeypatch, change):
    shutil.copytree(cache, tmp_path, dirs_exist_ok=True)
    if change == "code":
        monkeypatch.setattr("studies.common.cache.code_digest", lambda module, root: f"another {module}")
    changed = settings | ({"steps": 41} if change == "steps" else {})
    again = word_models(text, tmp_path, changed, [0])
    assert trained_at(again)[0] > trained_at(models)[0]
    assert again[0].calibration.artifact.inputs["lm"] == again[0].lm.digest != models[0].lm.digest


def test_some_documents_are_whole_in_order_and_about_as_many_words():
    given = word_chains(20, 99, 0)
    chosen = some_documents(given, 950)
    places = [given.index(document) for document in chosen]
    assert len(chosen) == 10 and places == sorted(places)
    assert some_documents(given, 10**6) == given


def test_the_beginning_of_a_document_is_its_first_words():
    document = Document("d", "one two\nthree")
    assert beginning(document, 2).text == "one two" and beginning(document, None) == document
