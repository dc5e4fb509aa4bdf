"""Gradient checkpointing: layers run again in the backward pass, and nothing but memory and time changes."""

from __future__ import annotations

import pytest
import torch

from tests.fixtures import pretrained_training as pretrained
from tests.training import test_pretrain

TRAININGS = {
    "block-wise": (test_pretrain.make_trainer, {"pretrain__blockwise__tokens": "hard"}),
    "joint": (
        test_pretrain.make_trainer,
        {"pretrain__method": "joint", "pretrain__joint_classifier": {"label": "loss", "weight": 1.0}},
    ),
    "checkpoint": (pretrained.make_trainer, {"method": "joint", "layer_dropout": 0.5}),
    "bf16": (pretrained.make_trainer, {"method": "joint", "precision": "bf16"}),
    "adapters": (pretrained.make_trainer, {"method": "joint", "lora": {"rank": 2, "alpha": 4}}),
    "exits' own layers": (
        pretrained.make_trainer,
        {"translator": "block", "method": "frozen", "frozen__translator": "block"},
    ),
}


@pytest.mark.parametrize("make, changes", TRAININGS.values(), ids=TRAININGS)
def test_weights_and_curve_are_the_same_bit_for_bit_and_layers_run_twice_to_learn(
    data, tmp_path, make, changes
):
    name = (
        "pretrain__gradient_checkpointing" if make is test_pretrain.make_trainer else "gradient_checkpointing"
    )
    runs = {}
    for on in (False, True):
        trainer = make(data, tmp_path / str(on), **{**changes, name: on})
        layers, calls = (
            [trainer.model.exit_layer(0) or trainer.model.blocks[0][0], trainer.model.blocks[-1][-1]],
            [],
        )
        for layer in layers:
            layer.register_forward_pre_hook(
                lambda layer, given, calls=calls: calls.append(torch.is_grad_enabled())
            )
        result = trainer.run()
        runs[on] = result.curve, trainer.model.state_dict(), sum(calls)
    (curve, weights, calls), (spared_curve, spared_weights, spared_calls) = runs[False], runs[True]
    assert spared_curve == curve
    assert all(torch.equal(spared_weights[key], value) for key, value in weights.items())
    assert spared_calls == 2 * calls > 0


def test_layers_keep_only_what_they_were_given(data, tmp_path):
    """Bytes the graph of a forward pass holds on to: of one layer's input each, where all activations
    were."""
    kept = {}
    for on in (False, True):
        trainer = pretrained.make_trainer(data, tmp_path / str(on), method="joint", gradient_checkpointing=on)
        model, tokens = trainer.model.requires_grad_(True), trainer.train.batch(torch.arange(4))[0]
        weights, saved = {parameter.data_ptr() for parameter in model.parameters()}, {}

        def keep(tensor: torch.Tensor, weights: set = weights, saved: dict = saved) -> torch.Tensor:
            if tensor.data_ptr() not in weights:
                saved[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            states = model(tokens)
        kept[on] = sum(saved.values())
        assert states[-1].requires_grad
    assert kept[True] < kept[False] / 4
