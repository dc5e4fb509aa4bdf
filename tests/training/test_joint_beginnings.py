"""Joint training of a checkpoint begins with the exits that least squares give, once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from offramp.errors import UserError
from offramp.models.blockwise import Blockwise
from offramp.training import frozen, least_squares
from offramp.training.snapshots import Snapshots
from tests.fixtures.pretrained_training import make_trainer

LORA = {"lora": {"rank": 2, "alpha": 4}}
JOINT = {"method": "joint", "frozen__tokens": 4096}


def first_looks(result) -> list[float]:
    """Perplexities of the early exits before any step."""
    return [row["calibration_ppl"] for row in result.curve if row["step"] == 0 and row["exit"] < 2]


@pytest.mark.parametrize("changes", [{}, LORA], ids=["all weights", "adapters"])
@pytest.mark.parametrize("translator", ["affine", "low_rank"])
def test_exits_begin_better_than_the_identity_and_full_depth_as_it_was(data, tmp_path, translator, changes):
    begun = {
        init: make_trainer(
            data, tmp_path / init, translator, **JOINT, **changes, frozen__init=init, steps=3
        ).run()
        for init in ("identity", "least_squares")
    }
    assert all(np.less(first_looks(begun["least_squares"]), first_looks(begun["identity"])))
    full = [
        [row for row in result.curve if row["step"] == 0][-1]["calibration_ppl"] for result in begun.values()
    ]
    assert full[0] == full[1]


def test_joint_and_frozen_training_begin_with_the_same_maps(data, tmp_path, monkeypatch):
    begun = []

    def remember(model, *sums):
        least_squares.begin(model, *sums)
        begun.append({name: value.clone() for name, value in model.translators.state_dict().items()})

    monkeypatch.setattr(frozen, "begin", remember)
    for method in ("joint", "frozen"):
        make_trainer(data, tmp_path / method, "affine", **JOINT | {"method": method}, steps=3).run()
    joint, alone = begun
    assert all(torch.equal(joint[name], value) and value.any() for name, value in alone.items())


class Interrupted(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize("changes", [{}, LORA], ids=["all weights", "adapters"])
def test_a_resumed_training_fits_nothing_again_and_ends_with_the_bits_of_a_straight_one(
    data, tmp_path, monkeypatch, changes
):
    straight = make_trainer(data, tmp_path / "straight", "affine", **JOINT, **changes)
    expected = straight.run()

    class StopsAfter(Snapshots):
        def due(self):
            return True

        def save(self, state, returns_to=None):
            super().save(state, returns_to)
            if "progress" in state and state["progress"]["step"] == 6:
                raise Interrupted

    interrupted = make_trainer(data, tmp_path / "resumed", "affine", **JOINT, **changes)
    interrupted.snapshots = StopsAfter(tmp_path / "resumed/resume", 0)
    with pytest.raises(Interrupted):
        interrupted.run()
    monkeypatch.setattr(frozen, "begin", None)
    resumed = make_trainer(data, tmp_path / "resumed", "affine", **JOINT, **changes)
    assert resumed.run().curve == expected.curve
    weights = straight.model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in resumed.model.state_dict().items())


def test_a_pass_that_was_killed_goes_on_and_no_states_of_the_training_text_are_kept(
    data, tmp_path, monkeypatch
):
    save, forward, ran = Snapshots.save, Blockwise.forward, [0]

    def save_and_stop(self, state, returns_to=None):
        save(self, state, returns_to)
        if self.folder.name.startswith("progress_train") and state["batches"] == 3:
            raise Interrupted

    def counted(model, tokens):
        ran[0] += len(tokens)
        return forward(model, tokens)

    def trainer(folder):
        out = make_trainer(data, folder, "affine", **JOINT, steps=3, evaluate_windows=8)
        out.snapshots.every_seconds = 0
        return out

    straight = trainer(tmp_path / "straight")
    straight.run()
    with monkeypatch.context() as killed, pytest.raises(Interrupted):
        killed.setattr(Snapshots, "save", save_and_stop)
        trainer(tmp_path / "resumed").run()
    assert not (tmp_path / "resumed/resume/states_train").exists()
    monkeypatch.setattr(Blockwise, "forward", counted)
    resumed = trainer(tmp_path / "resumed")
    resumed.run()
    passed, window = 4096 // resumed.train.window, resumed.config.batch_size
    assert ran[0] == passed - 3 * window + 3 * window + 2 * 8  # the rest of the pass, three steps, two looks
    weights = straight.model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in resumed.model.state_dict().items())


def test_too_few_tokens_are_named_before_any_pass(data, tmp_path, monkeypatch):
    monkeypatch.setattr(Blockwise, "forward", None)
    monkeypatch.setattr(least_squares, "TOKENS_PER_FEATURE", 5)
    trainer = make_trainer(data, tmp_path, "affine", method="joint", frozen__tokens=79)
    with pytest.raises(UserError, match=r"pretrain\.frozen\.tokens: 64 tokens are too few"):
        trainer.run()


def test_the_control_is_trained_by_its_last_exit_alone(data, tmp_path):
    trainer = make_trainer(data, tmp_path, method="final")
    result = trainer.run()
    assert {row["exit"] for row in result.curve} == {2}
    ppl = [row["calibration_ppl"] for row in result.curve]
    assert ppl[-1] < ppl[0]
