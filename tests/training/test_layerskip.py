"""Layer dropout and curricula of LayerSkip, in joint training of native and of pretrained models."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from offramp.training.layerskip import dropout_probabilities, exits_on, handed_on, layers_run, states_with
from tests.fixtures.pretrained_training import make_pretrained, make_trainer
from tests.training.test_pretrain import make_trainer as make_native


def test_dropout_rises_exponentially_from_zero_to_the_maximum():
    probabilities = dropout_probabilities(5, 0.2)
    assert probabilities == pytest.approx([0.2 * (np.exp(layer * np.log(2) / 4) - 1) for layer in range(5)])
    assert probabilities[0] == 0 and probabilities[-1] == pytest.approx(0.2)
    assert dropout_probabilities(1, 0.5) == [0]


def test_layers_are_left_out_as_often_as_wanted_and_the_same_ones_at_the_same_step():
    runs = np.array([layers_run([0.0, 0.1, 0.5], seed=3, step=step) for step in range(4000)])
    assert 1 - runs.mean(0) == pytest.approx([0, 0.1, 0.5], abs=0.03)
    assert np.corrcoef(runs[:, 1], runs[:, 2])[0, 1] == pytest.approx(0, abs=0.05)
    assert layers_run([0.5] * 20, 3, 7) == layers_run([0.5] * 20, 3, 7) != layers_run([0.5] * 20, 3, 8)


def test_a_layer_left_out_hands_on_what_it_gets():
    model, tokens = make_pretrained(50), torch.arange(12).view(2, 6)
    with torch.no_grad():
        for found, wanted in zip(states_with(model, tokens, [True] * 3), model(tokens)):
            assert torch.equal(found, wanted)
        first, second, last = states_with(model, tokens, [False, True, False])
    assert (
        torch.equal(first, model.embed(tokens))
        and torch.equal(last, second)
        and not torch.equal(first, second)
    )


@pytest.mark.parametrize("make", [make_native, make_trainer], ids=["native", "pretrained"])
def test_training_leaves_layers_out_and_evaluation_runs_all(data, tmp_path, make):
    changes = {"method": "joint", "head": "shared", "layer_dropout": 0.9, "steps": 12}
    trainer = make(
        data,
        tmp_path,
        **(
            {f"pretrain__{name}": value for name, value in changes.items()}
            if make is make_native
            else changes
        ),
    )
    calls = {"training": [], "evaluation": []}
    for index, layer in enumerate(layer for block in trainer.model.blocks for layer in block):
        layer.register_forward_hook(
            lambda *_, index=index: calls["training" if torch.is_grad_enabled() else "evaluation"].append(
                index
            )
        )
    trainer.run()
    layers = sum(trainer.model.config.block_layers)
    assert calls["training"].count(0) == 12 > calls["training"].count(layers - 1)
    assert len({calls["evaluation"].count(index) for index in range(layers)}) == 1


def test_rotational_curriculum_trains_the_last_exit_and_one_other_in_turn():
    assert [exits_on("rotational", range(4), step, 100) for step in range(4)] == [
        [0, 3],
        [1, 3],
        [2, 3],
        [0, 3],
    ]


def test_gradual_curriculum_adds_exits_from_the_deepest_over_the_first_half():
    schedule = [exits_on("gradual", range(4), step, 80) for step in range(80)]
    assert [schedule[step] for step in (0, 9, 10, 20, 29)] == [[3], [3], [2, 3], [1, 2, 3], [1, 2, 3]]
    assert all(on == [0, 1, 2, 3] for on in schedule[30:])
    assert exits_on(None, range(4), 0, 80) == [0, 1, 2, 3] and exits_on("gradual", [1], 0, 80) == [1]


def test_early_stopping_waits_until_a_gradual_curriculum_has_added_every_exit(data, tmp_path):
    """Exits not yet trained may well get worse; here all do, from the start."""
    stopped = {
        curriculum: make_trainer(
            data,
            tmp_path / str(curriculum),
            method="joint",
            curriculum=curriculum,
            learning_rate=3.0,
            patience=1,
        )
        .run()
        .best["joint"]["steps"]
        for curriculum in (None, "gradual")
    }
    assert stopped == {None: 4, "gradual": 8}


def back_propagated(parts):
    """As training does, before the next part is asked for."""
    for part in parts:
        sum(loss.mean for loss in part.values()).backward()
        yield part


def test_weights_of_exits_that_are_off_go_to_those_that_are_on(data, tmp_path):
    """The loss keeps its scale, and a curve row averages the steps at which its exit was trained."""
    trainer = make_trainer(data, tmp_path, method="joint", curriculum="gradual", exit_weights=[1.0, 2.0, 3.0])
    phase = trainer._phase(0, fresh=True)
    assert handed_on(phase.weights, [2]) == {2: 6.0}
    assert handed_on(phase.weights, [1, 2]) == {1: pytest.approx(2.4), 2: pytest.approx(3.6)}
    assert handed_on(phase.weights, [0, 1, 2]) == phase.weights == {0: 1.0, 1: 2.0, 2: 3.0}
    for step, wanted in (
        (0, {"exit 2": 6.0}),
        (trainer.params.steps - 1, {"exit 2": 3.0, "exit 1": 2.0, "exit 0": 1.0}),
    ):
        parts = list(back_propagated(phase.losses(torch.arange(2), step)))
        assert {name: loss.weight for part in parts for name, loss in part.items()} == wanted
    rows = [row["train_loss"] for row in trainer.run().curve if row["exit"] == 0]
    assert (
        rows[0] is None and rows[1] is None and rows[2] is not None
    )  # a look before training, then off until step 4
