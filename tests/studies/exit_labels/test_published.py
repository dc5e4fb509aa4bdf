"""The report exit-labels after its first block, on a few thousand made-up words: its flaws are really
there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from offramp.models.native import BlockwiseLM
from offramp.models.store import load_model
from studies.common.first_block import EmbeddedWindows, FirstBlock, block_ppl, first_block
from studies.exit_labels.published import (
    REPORT_ARMS,
    Procedure,
    RepackedTokens,
    ReportConfidence,
    first_exit,
    published_values,
    train_report_classifier,
    true_early_exit,
)
from tests.fixtures.tiny_studies import tiny_job
from tests.fixtures.word_chains import chain_text

SEED = 42


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def job(cache):
    return tiny_job("exit_labels", chain_text(), "published", cache)


@pytest.fixture(scope="module")
def block(job) -> FirstBlock:
    return first_block(job.text, job.cache, job.shared["first_block"], SEED)


@pytest.fixture(scope="module")
def procedure(job) -> Procedure:
    return Procedure.of(job.shared["first_block"], job.settings["published"], job.text.corpus, SEED)


@pytest.fixture(scope="module")
def values(block, procedure, cache) -> dict[str, float]:
    return published_values(block, procedure, REPORT_ARMS, cache)[0]


def test_repacking_keeps_the_order_and_drops_the_remainder():
    states, targets = torch.arange(20.0).unsqueeze(1), torch.arange(20)
    packed = RepackedTokens(states, targets, targets % 2 == 1, 4)
    x, y = packed.states(torch.arange(len(packed)))
    assert y.tolist() == [[1, 3, 5, 7], [9, 11, 13, 15]] and x.squeeze(-1).tolist() == y.tolist()


def test_the_reports_classifier_learns_a_linear_label(procedure):
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(1600, 16, generator=generator)
    labels = torch.sigmoid(states[:, 0])
    longer = replace(procedure, first=replace(procedure.first, learning_rate=1e-2), exit_epochs=60)
    classifier, losses = train_report_classifier(states, labels, False, 8, longer)
    assert len(losses) == 60 and losses[-1] < 0.1 * losses[0]
    assert torch.corrcoef(torch.stack([classifier(states).squeeze(-1), states[:, 0]]))[0, 1] > 0.98


def test_labels_are_max_p_p_of_the_correct_word_and_whether_the_argmax_is_right(block):
    model = load_model(block.block0)
    first = first_exit(model, block.validation, 16)
    probabilities = torch.softmax(first.states @ model.heads[0].T, dim=-1)
    torch.testing.assert_close(first.label("distill"), probabilities.amax(-1), rtol=1e-4, atol=1e-6)
    correct = probabilities.gather(1, first.targets[:, None]).squeeze(1)
    torch.testing.assert_close(first.label("loss"), correct, rtol=1e-4, atol=1e-6)
    assert torch.equal(first.label("correct"), (probabilities.argmax(-1) == first.targets).float())


def two_block_model(block: FirstBlock) -> BlockwiseLM:
    """A model whose second block matters, too."""
    model = load_model(block.block0)
    with torch.no_grad():
        model.blocks[1][0].attn_out.weight.mul_(20)
    return model


def half_leave(block: FirstBlock, model: BlockwiseLM) -> tuple[ReportConfidence, float]:
    """A confidence and the threshold by which half of the validation tokens leave."""
    confidence = ReportConfidence(nn.Linear(model.config.width, 1))
    tokens = block.validation.batch(torch.arange(len(block.validation)))[0]
    states = model.run_block(0, model.embed(tokens)).flatten(0, 1)
    return confidence, confidence(states, states[:, 0]).median().item()


def test_every_block_and_readout_runs_on_every_token(block):
    model = two_block_model(block)
    confidence = ReportConfidence(nn.Linear(model.config.width, 1))
    routed = true_early_exit(model, confidence, -1.0, block.validation, 16)
    tokens = len(block.validation) * block.validation.window
    assert (routed.exit == 0).all()
    assert routed.work.layer_tokens == [tokens] * 3 and sum(routed.work.readouts) == 2 * tokens


def test_a_token_that_left_passes_on_its_blocks_input(block):
    model = two_block_model(block)
    confidence, threshold = half_leave(block, model)
    routed = true_early_exit(model, confidence, threshold, block.validation, 16)
    tokens, targets = block.validation.batch(torch.arange(len(block.validation)))
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


def test_training_block_1_moves_the_outputs_of_block_0(block, values):
    model, everything = load_model(block.block0), torch.arange(len(block.validation))
    before = block_ppl(model, 0, EmbeddedWindows(model, block.validation), everything, 16)
    assert values["block0_heldout_ppl"] == pytest.approx(before)
    assert abs(values["block0_drift"]) > 1e-6
    assert all(values[f"block0_after_ppl.{arm}"] != before for arm in REPORT_ARMS)


def test_layers_are_saved_by_a_formula_alone(values):
    for arm in REPORT_ARMS:
        assert values[f"executed_layer_saving.{arm}"] == 0 > values[f"flop_saving.{arm}"]
        assert values[f"layer_saving.{arm}"] == pytest.approx(values[f"shallow_ratio.{arm}"] * 2 / 3)


def test_finished_arms_are_not_run_again(block, procedure, values, cache, monkeypatch):
    monkeypatch.setattr("studies.exit_labels.published.run_arm", None)
    assert published_values(block, procedure, REPORT_ARMS, cache)[0] == values


@pytest.mark.parametrize("change", ["code", "procedure"])
def test_arms_of_other_code_or_of_another_procedure_are_run_again(
    block, procedure, values, cache, monkeypatch, change
):
    monkeypatch.setattr("studies.exit_labels.published.run_arm", None)
    if change == "code":
        monkeypatch.setattr("studies.common.cache.code_digest", lambda module, root: "changed")
    else:
        procedure = replace(procedure, hard_ratio=0.4)
    with pytest.raises(TypeError):  # there is nothing that runs an arm
        published_values(block, procedure, REPORT_ARMS, cache)
