"""The study of seed 003 on a few thousand made-up words: its flaws are really there, and really gone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from offramp.errors import UserError
from offramp.models.native import BlockwiseLM
from offramp.models.store import load_model
from offramp.states.store import States
from offramp.training.snapshots import Snapshots
from studies.common import text as _text
from studies.common.first_block import (
    PUBLISHED,
    EmbeddedWindows,
    Published,
    block_ppl,
    published,
    read_words,
    seed_model,
    train_block,
)
from studies.common.results import over_seeds, write_results
from studies.common.text import Document, StudyText, study_text
from studies.common.words import WORDS, some_documents, word_models
from studies.exit_labels.published import (
    ARMS,
    RepackedTokens,
    SeedConfidence,
    first_exit,
    published_values,
    train_seed_classifier,
    true_early_exit,
)
from studies.exit_labels.study import CORRECTED, FLAWS, comparisons, run_corrected, run_published

SEED = {
    **PUBLISHED,
    "train_words": {"sotu": 2200},
    "validation_words": {"sotu": 600},
    "vocabulary_words": {"sotu": None},
    "window": 8,
    "width": 16,
    "heads": 2,
    "ffn_width": 32,
    "block_layers": [1, 2],
    "batch_size": 16,
    "max_epochs": 3,
    "later_max_epochs": 2,
    "exit_epochs": 3,
}
SMALL = {
    **WORDS,
    "words": 10_000,
    "calibration_fraction": 0.25,
    "test_fraction": 0.2,
    "vocab_size": 300,
    "window": 8,
    "width": 16,
    "heads": 2,
    "ffn_width": 32,
    "block_layers": [1, 2],
    "steps": 40,
    "batch_size": 16,
    "evaluate_every": 10,
    "evaluate_windows": 20,
    "seeds": [0, 1],
}

BY_ARM = {
    "final_ppl",
    "accuracy",
    "shallow_ratio",
    "layer_saving",
    "flop_saving",
    "threshold",
    "executed_layer_saving",
    "ratio.final_over_block0",
    "ratio.final_over_block0_same_set",
}
OF_CLASSIFIERS = {"label_mean", "exit_loss_first", "exit_loss_last"}
ALONE = {
    "block0_val_ppl",
    "block0_heldout_ppl",
    "full_heldout_ppl",
    "exit_rate_drift.softmax",
    "ppl_ratio.loss_over_distill",
    "ppl_ratio.softmax_over_distill",
    "saving_gain.softmax_over_distill",
}


def required(by_arm: set[str], alone: set[str]) -> set[str]:
    learned = {f"{name}.{arm}" for name in OF_CLASSIFIERS for arm in ARMS if arm != "softmax"}
    return alone | learned | {f"{name}.{arm}" for name in by_arm for arm in ARMS}


def documents(count: int, words: int, seed: int) -> list[Document]:
    """Word chains: each word is mostly followed by its successor, so there is something to learn, and a rare one."""
    random, found = np.random.default_rng(seed), []
    for number in range(count):
        word, text = int(random.integers(40)), []
        for _ in range(words):
            text.append(f"Word{word}")
            word = (word + 1) % 40 if random.random() < 0.7 else int(random.integers(40))
        found.append(Document(f"{seed}-{number}", " ".join([*text, f"rare{seed}x{number}"]) + "\n"))
    return found


@pytest.fixture(scope="module")
def text() -> StudyText:
    return StudyText("sotu", "made up", documents(14, 200, 0), documents(6, 200, 1))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def base(text, root) -> Published:
    return published(text, root, SEED)


@pytest.fixture(scope="module")
def values(base, text, root) -> dict[str, float]:
    return run_published(text, root, SEED)[0]


# Text ---------------------------------------------------------------------------------------------------------------


def test_the_text_has_a_digest_of_its_documents_and_no_machine_path(tmp_path, monkeypatch):
    for file, titles in ((_text.FILES["train"], "ABC"), (_text.FILES["calibration"], "DE")):
        (tmp_path / file).write_text(
            "".join(f" \n = {title} = \n \n text of {title} \n = = Part = = \n more \n" for title in titles)
        )
    monkeypatch.setenv("WIKITEXT2", str(tmp_path))
    found = study_text("wikitext")
    assert [len(found.train), len(found.validation)] == [3, 2]  # " = = Part = = " begins no article
    assert found.train[1].text.startswith(" = B = \n")
    assert str(tmp_path) not in json.dumps(found.record()) + "".join(
        document.name for document in found.train
    )
    (tmp_path / _text.FILES["train"]).write_text(" = A = \n another text\n")
    assert study_text("wikitext").sha256 != found.sha256


def test_a_folder_without_the_files_is_an_error_that_names_the_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("WIKITEXT2", str(tmp_path))
    with pytest.raises(UserError, match=r"WIKITEXT2 = .* has no file train\.tokens\.head\.txt"):
        study_text("wikitext")


def test_addresses_held_out_are_no_training_documents():
    found = study_text("sotu")
    assert not {document.name for document in found.train} & {document.name for document in found.validation}
    assert len(found.train) + len(found.validation) == 237


# Published: words and block 0 -----------------------------------------------------------------------------------------


def test_windows_are_consecutive_words_predicting_the_next_and_batches_are_whole(text):
    vocabulary, train, validation = read_words(text, SEED)
    words = " ".join(document.text for document in text.train).lower().split()
    ids = [vocabulary[word] for word in words]
    inputs, targets = train.batch(torch.tensor([0, 3]))
    assert inputs[1].tolist() == ids[24:32] and targets[1].tolist() == ids[25:33]
    assert len(train) == (2200 - 1) // 8 // 16 * 16 and len(validation) == 64
    assert train.documents(torch.tensor([25]))[0].tolist() == [
        0,
        1,
        1,
        1,
        1,
        1,
        1,
        1,
    ]  # 201 words to a document


def test_the_vocabulary_holds_validation_words_that_training_never_sees(text):  # I9
    vocabulary, train, _ = read_words(text, SEED)
    seen = set(train.batch(torch.arange(len(train)))[1].unique().tolist())
    assert "rare1x0" in vocabulary and vocabulary["rare1x0"] not in seen


def test_the_embedding_stays_as_initialised(base):  # I1
    trained, untrained = load_model(base.block0), seed_model(base.train.vocab_size, SEED)
    assert torch.equal(trained.embedding.weight, untrained.embedding.weight)
    assert not torch.equal(trained.heads[0], untrained.heads[0])
    assert torch.equal(
        trained.blocks[1][0].query.weight, untrained.blocks[1][0].query.weight
    )  # block 1 has not begun


def test_states_of_both_splits_are_those_of_the_one_block_model(base):
    model, validation = load_model(base.lm), base.validation
    tokens, targets = validation.batch(torch.arange(len(validation)))
    states = model(tokens)[0]
    torch.testing.assert_close(base.states.hidden(0), states.flatten(0, 1))
    loss = F.cross_entropy(model.logits(0, states).flatten(0, 1), targets.flatten(), reduction="none")
    np.testing.assert_allclose(base.states.column("loss_0"), loss.detach().numpy(), rtol=1e-4, atol=1e-5)
    assert base.train_states.num_tokens == len(base.train) * SEED["window"]
    assert base.lm.meta["validation_ppl"] == pytest.approx(float(np.exp(loss.mean().item())), rel=1e-4)
    assert base.lm.meta["validation_ppl"] == min(row["held_out_ppl"] for row in base.lm.meta["curve"])


def test_what_was_made_is_opened_again_and_other_settings_make_it_anew(base, text, root, tmp_path):
    assert published(text, root, SEED).block0.digest == base.block0.digest
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    other = published(text, tmp_path, {**SEED, "learning_rate": 1e-4})
    assert other.block0.digest != base.block0.digest
    assert other.states.artifact.inputs["lm"] == other.lm.digest != base.lm.digest


def test_an_interrupted_training_goes_on_as_if_nothing_had_happened(base, tmp_path):
    whole, parts = (seed_model(base.train.vocab_size, SEED) for _ in range(2))
    straight = train_block(
        whole, 0, EmbeddedWindows(whole, base.train), SEED, 1e-3, Snapshots(tmp_path / "whole", 0.0)
    )
    for epochs in (1, SEED["max_epochs"]):
        options = {**SEED, "max_epochs": epochs}
        run = train_block(
            parts, 0, EmbeddedWindows(parts, base.train), options, 1e-3, Snapshots(tmp_path / "parts", 0.0)
        )
    assert run.curve == straight.curve and len(run.curve) == SEED["max_epochs"]
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), parts.parameters()))


# Published: after the first exit ------------------------------------------------------------------------------------


def test_repacking_keeps_the_order_and_drops_the_remainder():  # I7
    states, targets = torch.arange(20.0).unsqueeze(1), torch.arange(20)
    packed = RepackedTokens(states, targets, targets % 2 == 1, 4)
    x, y = packed.states(torch.arange(len(packed)))
    assert y.tolist() == [[1, 3, 5, 7], [9, 11, 13, 15]] and x.squeeze(-1).tolist() == y.tolist()


def test_the_seeds_classifier_learns_a_linear_label():
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(1600, 16, generator=generator)
    labels = torch.sigmoid(states[:, 0])
    options = {**SEED, "exit_epochs": 60, "learning_rate": 1e-2}
    classifier, losses = train_seed_classifier(states, labels, False, options)
    assert len(losses) == 60 and losses[-1] < 0.1 * losses[0]
    assert torch.corrcoef(torch.stack([classifier(states).squeeze(-1), states[:, 0]]))[0, 1] > 0.98


def test_labels_are_max_p_p_of_the_correct_word_and_whether_the_argmax_is_right(base):
    model, batch = load_model(base.block0), 16
    first = first_exit(model, base.validation, batch)
    probabilities = torch.softmax(first.states @ model.heads[0].T, dim=-1)
    torch.testing.assert_close(first.label("distill"), probabilities.amax(-1), rtol=1e-4, atol=1e-6)
    correct = probabilities.gather(1, first.targets[:, None]).squeeze(1)
    torch.testing.assert_close(first.label("loss"), correct, rtol=1e-4, atol=1e-6)
    assert torch.equal(first.label("correct"), (probabilities.argmax(-1) == first.targets).float())


def two_block_model(base: Published) -> BlockwiseLM:
    """A model whose second block matters, too."""
    model = load_model(base.block0)
    with torch.no_grad():
        model.blocks[1][0].attn_out.weight.mul_(20)
    return model


def half_leave(base: Published, model: BlockwiseLM) -> tuple[SeedConfidence, float]:
    classifier = nn.Linear(SEED["width"], 1)
    states = model.run_block(
        0, model.embed(base.validation.batch(torch.arange(len(base.validation)))[0])
    ).flatten(0, 1)
    confidence = SeedConfidence(classifier)
    return confidence, confidence(states, states[:, 0]).median().item()


def test_every_block_and_readout_runs_on_every_token(base):  # I3
    model = two_block_model(base)
    routed = true_early_exit(model, SeedConfidence(nn.Linear(SEED["width"], 1)), -1.0, base.validation, 16)
    tokens = len(base.validation) * SEED["window"]
    assert (routed.exit == 0).all()
    assert routed.work.layer_tokens == [tokens] * 3 and routed.work.readout_tokens == 2 * tokens


def test_a_token_that_left_passes_on_its_blocks_input(base):  # I4
    model = two_block_model(base)
    confidence, threshold = half_leave(base, model)
    routed = true_early_exit(model, confidence, threshold, base.validation, 16)
    tokens, targets = base.validation.batch(torch.arange(len(base.validation)))
    embedded = model.embed(tokens)
    output = model.run_block(0, embedded)
    left = (routed.exit == 0).view(tokens.shape).unsqueeze(-1)
    assert 0.3 < left.float().mean() < 0.7

    def loss_of(passed_on: torch.Tensor) -> torch.Tensor:
        deep = model.logits(1, model.run_block(1, torch.where(left, passed_on, output)))
        logits = torch.where(left, model.logits(0, output), deep)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")

    torch.testing.assert_close(routed.loss, loss_of(embedded).detach(), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(routed.loss, loss_of(output).detach(), rtol=1e-3)


def test_training_block_1_moves_the_outputs_of_block_0(base, values):  # I2
    before = block_ppl(
        load_model(base.block0),
        0,
        EmbeddedWindows(load_model(base.block0), base.validation),
        torch.arange(len(base.validation)),
        16,
    )
    assert values["block0_heldout_ppl"] == pytest.approx(before)
    assert abs(values["block0_drift"]) > 1e-5
    assert all(values[f"block0_after_ppl.{arm}"] != before for arm in ARMS)


def test_the_published_protocol_gives_every_key(values):
    assert required(BY_ARM | {"block1_val_ppl"}, ALONE | {"block0_drift"}) <= set(values)
    assert all(np.isfinite(value) for value in values.values())
    for arm in ARMS:
        assert values[f"executed_layer_saving.{arm}"] == 0 > values[f"flop_saving.{arm}"]
        assert values[f"layer_saving.{arm}"] == pytest.approx(values[f"shallow_ratio.{arm}"] * 2 / 3)


def test_finished_arms_are_not_run_again(base, values, root, monkeypatch):
    monkeypatch.setattr("studies.exit_labels.published.run_arm", None)
    again, _ = published_values(base, root / "build/studies/sotu/published")
    assert again == {name: values[name] for name in again}


# Corrected ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corrected(text, root) -> list[dict[str, float]]:
    return run_corrected(text, root, SMALL, CORRECTED)[0]


def test_the_corrected_protocol_gives_every_key_for_every_seed(corrected):
    for found in corrected:
        assert set(found) == required(BY_ARM | {"random_ppl"}, ALONE)
    assert all(np.isfinite(value) for found in corrected for value in found.values())
    assert corrected[0]["final_ppl.distill"] != corrected[1]["final_ppl.distill"]


def test_layers_saved_are_layers_the_executor_did_not_run(corrected):
    for found in corrected:
        for arm in ARMS:
            assert found[f"executed_layer_saving.{arm}"] == pytest.approx(found[f"layer_saving.{arm}"])
            assert 0 < found[f"shallow_ratio.{arm}"] < 1
        assert found["flop_saving.softmax"] < found["flop_saving.distill"]  # it pays a readout to decide


def test_word_models_learn_know_unknown_words_and_are_made_once(corrected, text, root):
    models = word_models(text, root, SMALL)
    assert [model.seed for model in models] == [0, 1]
    for model, found in zip(models, corrected):
        assert model.data.meta["splits"]["test"]["unknown_rate"] > 0  # rare words, each in one document only
        assert found["full_heldout_ppl"] < model.data.meta["vocab_size"] * 0.8
        assert isinstance(model.test, States) and model.test.num_exits == 2
        weights = model.load().heads
        assert len(weights) == 2 and not torch.equal(weights[0], weights[1])
    marks = [model.lm.file("weights.safetensors").stat().st_mtime_ns for model in models]
    assert [
        model.lm.file("weights.safetensors").stat().st_mtime_ns for model in word_models(text, root, SMALL)
    ] == marks


def test_some_documents_are_whole_in_order_and_about_as_many_words():
    given = documents(20, 99, 0)
    chosen = some_documents(given, 950)
    assert len(chosen) == 10 and [given.index(document) for document in chosen] == sorted(
        map(given.index, chosen)
    )
    assert some_documents(given, 10**6) == given


# Results ------------------------------------------------------------------------------------------------------------


def test_comparisons_are_of_the_arms_final_numbers():
    found = {f"final_ppl.{arm}": ppl for arm, ppl in zip(ARMS, (100.0, 98.0, 111.0, 105.0))}
    found |= {
        "shallow_ratio.softmax": 0.728,
        "layer_saving.softmax": 0.364,
        "layer_saving.distill": 0.253,
        "block0_val_ppl": 50.0,
        "block0_heldout_ppl": 80.0,
    }
    out = comparisons(found, 0.5)
    assert out["ppl_ratio.loss_over_distill"] == pytest.approx(0.98)
    assert out["exit_rate_drift.softmax"] == pytest.approx(0.228)
    assert out["saving_gain.softmax_over_distill"] == pytest.approx(0.111)
    assert (out["ratio.final_over_block0.distill"], out["ratio.final_over_block0_same_set.distill"]) == (
        2.0,
        1.25,
    )


def test_both_protocols_go_into_one_file(values, corrected, text, tmp_path):
    write_results("exit_labels", "sotu", text.record(), FLAWS, values, None, {}, tmp_path)
    written = json.loads(
        write_results("exit_labels", "sotu", text.record(), FLAWS, None, corrected, {}, tmp_path).read_text()
    )
    assert written["published"]["values"] == pytest.approx(values)
    assert written["corrected"]["values"] == over_seeds(corrected)
