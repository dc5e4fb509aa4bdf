"""The loop that all trainings share: when it looks, which weights it leaves, when it stops, and how it goes
on."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from offramp.training.loop import Best, BestOfEach, Progress, Selection, Training, every
from offramp.training.snapshots import Snapshots


class Counting:
    """A "model" of one weight, the number of steps made; losses by step."""

    def __init__(self, losses: dict[int, float]):
        self.model, self.losses = nn.Linear(1, 1, bias=False), losses
        self.model.weight.data.zero_()
        self.looked_at: list[int] = []

    def step(self, number: int) -> None:
        assert self.weight == number
        self.model.weight.data += 1

    def look(self, steps: int) -> tuple[list[dict[str, float]], float]:
        self.looked_at.append(steps)
        return [{"step": steps, "loss": self.losses[steps]}], self.losses[steps]

    @property
    def weight(self) -> int:
        return int(self.model.weight)

    def training(self, selection: Selection, **changes) -> Training:
        options = {"steps": max(self.losses), "looks": self.losses.keys(), **changes}
        return Training(step=self.step, look=self.look, selection=selection, **options)


def test_looks_come_after_every_so_many_steps_and_after_the_last():
    assert (
        sorted(every(4, 10)) == [4, 8, 10] and sorted(every(5, 10)) == [5, 10] and sorted(every(9, 3)) == [3]
    )
    counting = Counting({4: 1.0, 8: 1.0, 10: 1.0})
    progress = counting.training(Selection(), looks=every(4, 10)).run()
    assert counting.looked_at == [4, 8, 10] and progress.step == counting.weight == 10
    assert progress.curve == [{"step": step, "loss": 1.0} for step in (4, 8, 10)]


@pytest.mark.parametrize(("patience", "kept", "looks"), [(1, 2, 3), (2, 2, 4), (3, 5, 8), (None, 9, 9)])
def test_the_best_weights_are_left_and_patience_counts_looks_since_then(patience, kept, looks):
    losses = (3.0, 2.0, 2.0, 2.5, 1.0, math.nan, 1.0, 1.0, 0.5)
    counting = Counting(dict(enumerate(losses, start=1)))
    progress = counting.training(Best(counting.model, patience)).run()
    assert (counting.weight, progress.best_step, progress.best_look) == (kept, kept, kept)
    assert counting.looked_at == list(range(1, looks + 1))


def test_a_model_that_no_look_found_better_stays_as_it_began():
    counting = Counting({0: 1.0, 1: 2.0, 2: 3.0})
    progress = counting.training(Best(counting.model), looks_first=True).run()
    assert counting.weight == 0 and counting.looked_at == [0, 1, 2] and progress.best_look == 1


def together(patience: int | None, restore_best: bool) -> tuple[list[int], BestOfEach, list[int]]:
    """Three models whose weights count steps: what each ends with, the selection, and the looks made."""
    weights = {"w": torch.zeros(3, 2)}
    losses = torch.tensor([[3.0, 3.0, 1.0], [2.0, 4.0, 2.0], [1.0, 5.0, 3.0], [0.5, 1.0, 0.1]])
    looks: list[int] = []

    def step(number: int) -> None:
        weights["w"] += 1

    def look(steps: int) -> tuple[list, list[float]]:
        looks.append(steps)
        return [], losses[steps - 1].tolist()

    selection = BestOfEach(weights, patience, restore_best)
    Training(step=step, look=look, steps=4, looks=range(1, 5), selection=selection).run()
    assert torch.equal(weights["w"][:, 0], weights["w"][:, 1])
    return weights["w"][:, 0].int().tolist(), selection, looks


def test_models_trained_together_end_each_on_their_own():
    weights, selection, looks = together(patience=2, restore_best=True)
    assert weights == [4, 1, 1] and looks == [1, 2, 3, 4]
    assert selection.steps == [4, 3, 3] and selection.best_look == [4, 1, 1]
    assert selection.curves[1] == [3.0, 4.0, 5.0] and selection.lowest == [0.5, 3.0, 1.0]
    assert together(patience=2, restore_best=False)[0] == [4, 3, 3]
    assert together(patience=None, restore_best=True)[0] == [4, 4, 4]
    assert together(patience=1, restore_best=True)[0] == [4, 1, 1]


def test_training_goes_on_from_a_snapshot_where_it_was(tmp_path: Path):
    """What lies between the snapshot and the interruption is made again; the rest never."""
    losses = {2: 1.0, 4: 2.0, 6: 3.0, 8: 0.5}

    def start(snapshots: Snapshots) -> tuple[Counting, Progress, Training]:
        counting, selection, progress = Counting(losses), Selection(), Progress()
        if saved := snapshots.load():
            progress = Progress(**saved["progress"])
            counting.model.load_state_dict(saved["model"])
        training = counting.training(
            selection, snapshots=snapshots, state=lambda: {"model": counting.model.state_dict()}
        )
        return counting, progress, training

    counting, progress, training = start(Snapshots(tmp_path, 0.0))
    step = training.step

    def interrupted(number: int) -> None:
        if number == 5:
            raise KeyboardInterrupt
        step(number)

    training.step = interrupted
    with pytest.raises(KeyboardInterrupt):
        training.run(progress)
    counting, progress, training = start(Snapshots(tmp_path, 1e9))
    assert progress.step == counting.weight == 5 and progress.looks == 2
    training.run(progress)
    assert counting.looked_at == [6, 8]
    assert progress.curve == [{"step": step, "loss": loss} for step, loss in losses.items()]


def test_the_learning_curve_grows_in_one_place(monkeypatch):
    """Whoever follows a training while it runs has a single method to listen to."""
    counting, points = Counting({1: 2.0, 2: 1.0}), []
    monkeypatch.setattr(Progress, "append", lambda self, rows: points.extend(rows))
    progress = counting.training(Selection()).run()
    assert points == [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.0}] and progress.curve == []
