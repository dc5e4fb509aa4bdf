"""Two real processes under ``accelerate launch`` do together what one does alone: same weights, curve, rows
and bytes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from offramp.artifacts.artifact import open_artifact
from offramp.corpus.windows import TokenWindows
from offramp.errors import UserError
from offramp.machine.processes import ALONE, Processes, join
from offramp.models.store import save_model
from offramp.states.collect import collect_states
from offramp.training.fit import losses_and_gradients
from offramp.training.losses import VocabularySample
from tests.conftest import REPOSITORY
from tests.fixtures import pretrained_training as pretrained
from tests.training.test_pretrain import make_trainer

pytestmark = pytest.mark.slow

TRAININGS = {  # batches of 5 have unequal halves, and every process has its own number of hard tokens
    "joint": {"pretrain__method": "joint", "pretrain__joint_classifier": {"label": "loss", "weight": 1.0}},
    "layers left out": {
        "pretrain__method": "joint",
        "pretrain__layer_dropout": 0.6,
        "pretrain__curriculum": "rotational",
    },
    "hard": {
        "pretrain__blockwise__tokens": "hard",
        "pretrain__joint_classifier": {"label": "correct", "weight": 1.0},
    },
    "repacked": {"pretrain__blockwise__tokens": "hard", "pretrain__blockwise__context": "repack"},
}
CHECKPOINTS = {
    "frozen": {"translator": "affine", "method": "frozen"},
    "frozen, a sample": {"translator": "mlp", "method": "frozen", "drawn": 8},
    "joint checkpoint": {"method": "joint"},
    "joint checkpoint, least squares": {"translator": "affine", "method": "joint", "frozen__tokens": 2048},
}
"""Trainings of a tiny checkpoint."""
COLLECTIONS = {"many shards": (1000, 7), "one shard": (10**6, 64)}
"""shard_tokens and batch_size"""


class Interrupted(Exception):
    """Stands for a kill."""


def train(data, folder: Path, processes: Processes, interrupt_after: int | None = None, **changes) -> None:
    folder.mkdir(exist_ok=True)
    trainer = make_trainer(data, folder, **{"processes": processes, "pretrain__batch_size": 5, **changes})
    if interrupt_after:
        losses, steps = trainer._block_losses, iter(range(interrupt_after))
        trainer.snapshots.every_seconds = 0
        trainer._block_losses = lambda *batch: (
            losses(*batch) if next(steps, None) is not None else interrupt()
        )
    result = trainer.run()
    if processes.main:
        save_model(trainer.model, folder)
        (folder / "curve.json").write_text(json.dumps(result.curve))


def train_checkpoint(data, folder: Path, processes: Processes, drawn: int | None = None, **changes) -> None:
    """``drawn``: entries of the vocabulary that a step draws."""
    folder.mkdir(exist_ok=True)
    if drawn:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(VocabularySample.draw.__func__, "__defaults__", (drawn,))
            train_checkpoint(data, folder, processes, **changes)
        return
    trainer = pretrained.make_trainer(data, folder, processes=processes, batch_size=5, **changes)
    result = trainer.run()
    if processes.main:
        save_file(
            {name: value.clone() for name, value in trainer.model.named_parameters()},
            folder / "weights.safetensors",
        )
        (folder / "curve.json").write_text(json.dumps(result.curve))


def take_gradients(data, folder: Path, processes: Processes) -> None:
    """Of one batch of an untrained model, towards the hard tokens of its second block."""
    trainer = make_trainer(data, folder, processes=processes, **TRAININGS["hard"])
    phase = [trainer._phase(block, fresh=True) for block in (0, 1)][-1]
    losses_and_gradients(phase, processes.share(torch.arange(5)), 0, processes)
    if processes.main:
        save_file(
            {name: value.grad for name, value in trainer.model.named_parameters() if value.grad is not None},
            folder / "gradients.safetensors",
        )


def interrupt():
    raise Interrupted


def do_everything(data, folder: Path, processes: Processes) -> None:
    """Every training and collection of this module."""
    take_gradients(data, folder, processes)
    for name, changes in TRAININGS.items():
        train(data, folder / name, processes, **changes)
    for name, changes in CHECKPOINTS.items():
        train_checkpoint(data, folder / name, processes, **changes)
    with pytest.raises(Interrupted):
        train(data, folder / "resumed", processes, interrupt_after=8, **TRAININGS["hard"])
    train(data, folder / "resumed", processes, **TRAININGS["hard"])
    for name, (shard_tokens, batch_size) in COLLECTIONS.items():
        settings = SimpleNamespace(
            precision="fp32", dtype="float16", shard_tokens=shard_tokens, batch_size=batch_size
        )
        model = make_trainer(data, folder).model
        collect_states(
            model,
            TokenWindows(data, "test"),
            folder / name,
            settings,
            params={},
            inputs={},
            device=processes.device,
            processes=processes,
        )


@pytest.fixture(scope="module")
def alone(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    do_everything(data, folder, ALONE)
    return folder


@pytest.fixture(scope="module")
def together(data, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("together")
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--multi_gpu",
        "--num_processes",
        "2",
        "--main_process_port",
        "0",
    ]
    path = os.pathsep.join([str(REPOSITORY), str(REPOSITORY / "src")])
    done = subprocess.run(
        [*launch, "-m", "tests.training.test_several_processes", str(data.path), str(folder)],
        text=True,
        cwd=REPOSITORY,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": path, "OMP_WAIT_POLICY": "PASSIVE"},
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_two_processes_take_the_gradient_of_one(alone, together):
    gradients, wanted = (load_file(folder / "gradients.safetensors") for folder in (together, alone))
    assert gradients.keys() == wanted.keys() and any(name.startswith("blocks.1") for name in wanted)
    for name, gradient in gradients.items():
        assert (gradient - wanted[name]).norm() < 1e-5 * wanted[name].norm()


@pytest.mark.parametrize("name", [*TRAININGS, *CHECKPOINTS])
def test_two_processes_train_the_model_of_one(alone, together, name):
    """What differs in the last digit grows from step to step, as it does between numbers of threads: a few
    steps only."""
    weights, wanted = (load_file(folder / name / "weights.safetensors") for folder in (together, alone))
    for parameter, value in wanted.items():
        torch.testing.assert_close(weights[parameter], value, atol=5e-4, rtol=1e-3)
    curve, wanted = (json.loads((folder / name / "curve.json").read_text()) for folder in (together, alone))
    assert len(curve) == len(wanted) > 2
    for row, row_wanted in zip(curve, wanted):
        assert row.pop("phase") == row_wanted.pop("phase") and row.keys() == row_wanted.keys()
        assert list(row.values()) == [
            value if value is None else pytest.approx(value, rel=1e-4) for value in row_wanted.values()
        ]


def test_an_interrupted_training_of_two_ends_with_the_weights_of_a_straight_one(together):
    resumed, straight = (load_file(together / name / "weights.safetensors") for name in ("resumed", "hard"))
    assert all(torch.equal(resumed[name], value) for name, value in straight.items())


@pytest.mark.parametrize("name", COLLECTIONS)
def test_two_processes_collect_the_bytes_of_one(alone, together, name):
    """The digest covers every file: same rows, same order, same shards."""
    collected, wanted = (open_artifact(folder / name, "states") for folder in (together, alone))
    assert collected.digest == wanted.digest and (collected.meta["shards"] > 4 or name == "one shard")


def test_a_batch_smaller_than_the_processes_is_refused(data, tmp_path):
    with pytest.raises(
        UserError, match=r"batches of 5 sequences for 6 processes; raise pretrain\.batch_size"
    ):
        train(data, tmp_path, Processes(0, 6))


if __name__ == "__main__":
    torch.set_num_threads(2)
    processes = join(torch.device("cpu"))
    do_everything(open_artifact(Path(sys.argv[1]), "data"), Path(sys.argv[2]), processes)
    processes.leave()
