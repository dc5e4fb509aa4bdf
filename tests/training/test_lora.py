"""Joint fine-tuning of pretrained models, of all weights or by low-rank adapters."""

from __future__ import annotations

import pytest
import torch

from offramp.training.lora import add_adapters
from tests.fixtures.pretrained_training import make_trainer
from tests.models.test_pretrained import CONFIGS, VOCAB, WINDOW, make_pair

LORA = {"method": "joint", "lora": {"rank": 2, "alpha": 4}}


def changed(before, model):
    return {name for name, value in model.state_dict().items() if not torch.equal(before[name], value)}


def test_joint_fine_tuning_trains_all_weights_and_improves_every_exit(data, tmp_path):
    trainer = make_trainer(data, tmp_path, method="joint")
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    result = trainer.run()
    assert changed(before, trainer.model) == set(before)
    for exit in range(3):
        ppl = [row["calibration_ppl"] for row in result.curve if row["exit"] == exit]
        assert len(ppl) == 4 and ppl[-1] < ppl[0]  # the first look is at the model as it came


def test_adapters_alone_are_trained_and_end_up_in_the_matrices_of_the_layers(data, tmp_path):
    trainer = make_trainer(data, tmp_path, **LORA)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    result = trainer.run()
    assert trainer.model.state_dict().keys() == before.keys()
    assert changed(before, trainer.model) == {
        name for name in before if name.startswith("blocks.") and before[name].ndim == 2
    }
    for name, value in trainer.model.state_dict().items():
        assert torch.linalg.matrix_rank(value - before[name], rtol=1e-3) <= 2 if value.ndim == 2 else True
    assert result.curve[-1]["calibration_ppl"] < result.curve[2]["calibration_ppl"]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_adapters_reach_the_loss_in_every_family_and_merging_them_changes_no_logits(config):
    _, model = make_pair(config)
    tokens = torch.randint(VOCAB, (2, WINDOW), generator=torch.Generator().manual_seed(1))
    original = [model.logits(exit, x) for exit, x in enumerate(model(tokens))]
    merge = add_adapters(model, rank=2, alpha=4.0)
    adapters = {name: parameter for name, parameter in model.named_parameters() if ".lora_" in name}
    for found, wanted in zip(logits(model, tokens), original):
        torch.testing.assert_close(found, wanted)  # the identity at first
    for parameter in adapters.values():
        torch.nn.init.normal_(parameter, std=0.1)
    before = logits(model, tokens)
    sum(part.square().mean() for part in before).backward()
    assert adapters and all(parameter.grad.any() for parameter in adapters.values())
    merge()
    assert not any("lora" in name or "base_layer" in name for name in model.state_dict())
    for found, wanted, start in zip(logits(model, tokens), before, original):
        torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)
        assert not torch.allclose(found, start, atol=1e-2)


def logits(model, tokens):
    return [model.logits(exit, x) for exit, x in enumerate(model(tokens))]
