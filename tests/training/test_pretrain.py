"""Pretraining: every method and switch trains what it says, and an interrupted run ends where a straight one
does."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from offramp.corpus.windows import TokenWindows
from offramp.errors import UserError
from offramp.machine.device import require_precision
from offramp.machine.processes import ALONE
from offramp.models.native import BlockwiseLM, ModelConfig
from offramp.training.fit import FitConfig, learning_rate, sequence_order
from offramp.training.losses import total_nll
from offramp.training.pretrain import Pretrainer
from offramp.training.sequences import InContext, Repacked, make_confidence
from offramp.training.snapshots import Snapshots
from tests.conftest import REPOSITORY, repository_params


def make_trainer(data, folder, *, block_layers=(1, 1), tied=False, norm="pre", **changes):
    steps, processes = changes.pop("steps", 12), changes.pop("processes", ALONE)
    params = repository_params(
        **{
            "pretrain__steps": steps,
            "pretrain__evaluate_every": 4,
            "pretrain__batch_size": 8,
            "model__tied": tied,
            **changes,
        }
    ).pretrain
    torch.manual_seed(params.seed)
    model = BlockwiseLM(
        ModelConfig(
            vocab_size=data.meta["vocab_size"],
            window=32,
            width=16,
            heads=2,
            ffn_width=32,
            block_layers=block_layers,
            norm=norm,
            tied=tied,
            heads_per_exit=params.head == "per_block",
            exit_classifiers=params.joint_classifier is not None,
        )
    )
    windows = (TokenWindows(data, split) for split in ("train", "calibration"))
    return Pretrainer(
        model, *windows, params, Snapshots(folder / "resume", 1e9), torch.device("cpu"), processes
    )


def changed(before, model):
    return {name for name, value in model.state_dict().items() if not torch.equal(before[name], value)}


def snapshot_of(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_blockwise_freezes_earlier_blocks_while_a_later_one_trains(data, tmp_path):
    trainer = make_trainer(data, tmp_path)
    model, states = trainer.model, {}
    whole = trainer._block_phase

    def record(block, fresh):
        states[block] = snapshot_of(model)
        return whole(block, fresh)

    trainer._block_phase = record
    result = trainer.run()
    between = {name for name in states[0] if not torch.equal(states[0][name], states[1][name])}
    after = changed(states[1], model)
    assert {name.split(".")[0] for name in between} == {"embedding", "blocks", "norms", "heads"}
    assert all(not name.startswith("blocks.1") for name in between)
    assert after and all(name.startswith(("blocks.1", "norms.1", "heads.1")) for name in after)
    assert [row["phase"] for row in result.curve] == ["block 0"] * 2 + [
        "block 1"
    ] * 2  # 6 steps each: looks at 4 and 6
    assert result.best["block 1"]["calibration_ppl"] < result.best["block 0"]["calibration_ppl"] * 1.2


@pytest.mark.parametrize(("head", "moves_in_block_1"), [("shared", True), ("frozen", False)])
def test_shared_head_moves_with_later_blocks_and_a_frozen_one_does_not(
    data, tmp_path, head, moves_in_block_1
):
    """With a shared head the logits of block 0 drift while block 1 trains, as in the report exit-labels."""
    trainer = make_trainer(data, tmp_path, pretrain__head=head)
    phase = trainer._block_phase(0, fresh=True)
    trainer._block_phase(1, fresh=True)
    head_0 = trainer.model.heads[0]
    assert any(parameter is head_0 for parameter in phase.parameters)
    assert head_0.requires_grad == moves_in_block_1


def test_frozen_embedding_is_never_trained(data, tmp_path):
    trainer = make_trainer(data, tmp_path, pretrain__blockwise__embedding="frozen")
    before = snapshot_of(trainer.model)
    trainer.run()
    assert "embedding.weight" not in changed(before, trainer.model)


@pytest.mark.parametrize("method", ["joint", "final"])
def test_joint_and_final_train_all_blocks_in_one_phase(data, tmp_path, method):
    trainer = make_trainer(data, tmp_path, pretrain__method=method, pretrain__head="shared")
    before = snapshot_of(trainer.model)
    result = trainer.run()
    names = changed(before, trainer.model)
    assert {name.split(".")[1] for name in names if name.startswith("blocks")} == {"0", "1"}
    assert ("norms.0.weight" in names) == (method == "joint")  # final never reads out the first exit
    assert {row["exit"] for row in result.curve} == ({0, 1} if method == "joint" else {1})
    assert set(result.best) == {method}


def test_hard_tokens_are_the_wanted_share_and_only_they_count(data, tmp_path):
    trainer = make_trainer(
        data, tmp_path, pretrain__blockwise__tokens="hard", pretrain__blockwise__hard_ratio=0.3
    )
    trainer._block_phase(0, fresh=True)
    train, _ = trainer._block_inputs(1, fresh=True)
    x, targets, counts = train.batch(torch.arange(len(train)))
    assert counts.float().mean() == pytest.approx(0.3, abs=0.01)
    with torch.no_grad():
        confidence = trainer.confidence(0, x, targets)
    assert confidence[counts].max() < confidence[~counts].min()


def test_repacking_keeps_hard_tokens_in_order_and_drops_only_the_remainder(data, tmp_path):
    """As in the report exit-labels: the flat list of hard tokens' output states, cut into new sequences."""
    trainer = make_trainer(
        data, tmp_path, pretrain__blockwise__tokens="hard", pretrain__blockwise__context="repack"
    )
    trainer._block_phase(0, fresh=True)
    packed, _ = trainer._block_inputs(1, fresh=True)
    assert isinstance(packed, Repacked)
    model, windows = trainer.model, trainer.train
    inputs, targets = windows.batch(range(len(windows)))
    with torch.no_grad():
        states = model.run_block(0, model.embed(inputs))
        top = model.logits(0, states).softmax(-1).amax(-1)
    hard = top < trainer.thresholds[0]
    rows = int(hard.sum()) // 32
    packed_batch, wanted = (
        packed.batch(torch.arange(rows))[:2],
        (states[hard][: rows * 32], targets[hard][: rows * 32]),
    )
    assert len(packed) == rows
    torch.testing.assert_close(packed_batch[0].flatten(0, 1), wanted[0], atol=1e-5, rtol=1e-4)
    assert torch.equal(packed_batch[1].flatten(), wanted[1])


def test_joint_classifier_learns_inside_pretraining(data, tmp_path):
    trainer = make_trainer(data, tmp_path, pretrain__joint_classifier={"label": "loss", "weight": 1.0})
    before = snapshot_of(trainer.model)
    trainer.run()
    assert "exit_classifiers.0.weight" in changed(before, trainer.model)


def test_early_stopping_keeps_the_best_weights(data, tmp_path):
    """At an absurd learning rate the loss soon rises; what remains is the best evaluation seen."""
    trainer = make_trainer(
        data,
        tmp_path,
        steps=80,
        pretrain__method="joint",
        pretrain__head="shared",
        pretrain__learning_rate=0.3,
        pretrain__schedule="constant",
        pretrain__patience=1,
    )
    result = trainer.run()
    nlls = {}
    for row in result.curve:
        nlls[row["step"]] = nlls.get(row["step"], 0) + np.log(row["calibration_ppl"]) / 2
    best = min(nlls, key=nlls.get)
    assert result.best["joint"]["best_step"] == best < result.best["joint"]["steps"] < 80
    assert np.mean(list(trainer._exit_nlls([0, 1]).values())) == pytest.approx(nlls[best], abs=1e-5)


def test_data_order_depends_on_seed_and_step_alone():
    straight = sequence_order(10, 3, seed=1, first_step=0)
    batches = [next(straight) for _ in range(12)]
    for first in (0, 1, 3, 5, 8):
        resumed = sequence_order(10, 3, seed=1, first_step=first)
        assert all(torch.equal(next(resumed), batch) for batch in batches[first:])
    epoch = torch.cat(batches[:3])
    assert len(set(epoch.tolist())) == 9


def test_learning_rate_warms_up_and_falls_to_zero():
    config = FitConfig(1, 1.0, "cosine", 10, 0, 1, 1, 1, 0)
    rates = [learning_rate(config, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == pytest.approx(1) and rates[-1] < 0.01
    assert np.argmax(rates) in (9, 10)


def test_chunked_loss_and_its_gradients_equal_the_plain_formula(monkeypatch):
    """Also where torch has no fused loss, and in bf16 to its precision."""
    torch.manual_seed(0)
    inputs, matrix = torch.randn(700, 12, requires_grad=True), torch.randn(90, 12, requires_grad=True)
    targets = torch.randint(90, (700,))

    def with_gradients(loss):
        inputs.grad = matrix.grad = None
        value = loss() * 0.5
        value.backward()
        return value.detach(), inputs.grad.clone(), matrix.grad.clone()

    plain = with_gradients(lambda: F.cross_entropy(inputs @ matrix.T, targets, reduction="sum"))
    for value, wanted in zip(with_gradients(lambda: total_nll(inputs, matrix, targets)), plain):
        torch.testing.assert_close(value, wanted, atol=1e-4, rtol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        value = total_nll(inputs, matrix, targets)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.detach(), plain[0] * 2, atol=0, rtol=5e-3)
    monkeypatch.delattr(F, "linear_cross_entropy")
    for value, wanted in zip(with_gradients(lambda: total_nll(inputs, matrix, targets)), plain):
        torch.testing.assert_close(value, wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_killed_and_resumed_training_ends_with_the_weights_of_a_straight_one(data, tmp_path):
    """A real SIGKILL, in the first and twice in the second block, then the same command again: identical
    bytes."""
    program = f"""
import sys, torch
sys.path[:0] = [{str(REPOSITORY)!r}, {str(REPOSITORY / "src")!r}]
from pathlib import Path
from offramp.artifacts.artifact import open_artifact
from offramp.models.store import save_model
from tests.training.test_pretrain import make_trainer
torch.set_num_threads(2)
folder = Path(sys.argv[1])
trainer = make_trainer(open_artifact(Path({str(data.path)!r}), "data"), folder, steps=80,
                       pretrain__blockwise__tokens="hard",
                       pretrain__joint_classifier={{"label": "loss", "weight": 1.0}})
trainer.snapshots.every_seconds = 0
trainer.run()
save_model(trainer.model, folder)
"""

    def run(folder, kill_after_snapshots=()):
        folder.mkdir()
        for wanted in [*kill_after_snapshots, None]:
            process = subprocess.Popen(
                [sys.executable, "-c", program, str(folder)], env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}
            )
            if wanted is None:
                assert process.wait(timeout=120) == 0
                return load_file(folder / "weights.safetensors")
            while process.poll() is None and _phase_and_step(folder) < wanted:
                time.sleep(0.01)
            assert process.poll() is None, "training ended before it could be killed"
            process.send_signal(signal.SIGKILL)
            process.wait()
        raise AssertionError

    straight = run(tmp_path / "straight")
    resumed = run(tmp_path / "resumed", [(0, 10), (1, 8), (1, 16)])
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def _phase_and_step(folder):
    file = folder / "resume/snapshot.pt"
    if not file.exists():
        return (-1, 0)
    progress = torch.load(file, weights_only=True)["progress"]
    return progress["phase"], progress["step"]


def test_weights_to_return_to_stay_as_long_as_a_snapshot_needs_them(tmp_path):
    """A kill may come between better weights and the next snapshot: then training resumes from the last, and
    returns to its weights."""

    def names():
        return {file.name for file in tmp_path.iterdir()}

    snapshots = Snapshots(tmp_path, 0.0)
    for step in (1, 2, 3):
        snapshots.keep(str(step), {"w": torch.full((2,), step)})
    assert names() == {"kept_3.pt"}
    snapshots.save({"step": 3}, "3")
    for step in (4, 5):
        snapshots.keep(str(step), {"w": torch.full((2,), step)})
    assert names() == {"kept_3.pt", "kept_5.pt", "snapshot.pt"}
    resumed = Snapshots(tmp_path, 0.0)
    assert resumed.load() == {"step": 3} and resumed.kept("3")["w"].tolist() == [3, 3]
    resumed.keep("4", {"w": torch.full((2,), 4)})
    assert resumed.kept("3")["w"].tolist() == [3, 3] and resumed.kept("4")["w"].tolist() == [4, 4]
    resumed.save({"step": 4}, "4")
    resumed.keep("6", {"w": torch.full((2,), 6)})
    assert names() == {"kept_4.pt", "kept_6.pt", "snapshot.pt"}


def test_a_torn_snapshot_is_not_used(tmp_path):
    """Two processes that wrote one file, as a stage and one that outlived its dvc did: torch reads such."""

    def snapshot(step):
        Snapshots(tmp_path, 0.0).save({"progress": {"step": step}, "w": torch.full((5000,), float(step))})
        return (tmp_path / "snapshot.pt").read_bytes()

    one, other = snapshot(1), snapshot(2)
    (tmp_path / "snapshot.pt").write_bytes(one[:10_000] + other[10_000:])
    torn = torch.load(tmp_path / "snapshot.pt", weights_only=True)["w"]
    assert set(torn.tolist()) == {1, 2}
    assert Snapshots(tmp_path, 0.0).load() is None
    snapshot(3)
    snapshots = Snapshots(tmp_path, 0.0)
    assert snapshots.load()["w"][0] == 3 and snapshots.goes_on == "step 3"
    snapshots.keep("3", {"w": torch.ones(1)})
    snapshots.save({"progress": {"step": 4, "phase": 1}}, "3")
    assert snapshots.goes_on == "step 4 of phase 2"
    (tmp_path / "kept_3.pt").unlink()  # which it would return to
    assert Snapshots(tmp_path, 0.0).load() is None


def test_snapshots_go_as_a_whole(tmp_path, monkeypatch):
    """A kill while they are removed leaves nothing that the next run would go on from."""
    snapshots = Snapshots(tmp_path / "key", 0.0)
    snapshots.save({"step": 1})
    with monkeypatch.context() as killed:
        killed.setattr(shutil, "rmtree", lambda *_, **__: None)
        snapshots.delete()
    assert [path.name for path in tmp_path.iterdir()] == ["key.gone"]
    assert Snapshots(tmp_path / "key", 0.0).load() is None
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def test_bf16_is_refused_where_the_device_has_none(data, tmp_path):
    absent = "cuda" if torch.backends.mps.is_available() else "mps"
    with pytest.raises(
        UserError, match=rf"pretrain\.precision = 'bf16': the device {absent} has no bf16 here"
    ):
        require_precision(torch.device(absent), "bf16", "pretrain.precision")
    trainer = make_trainer(data, tmp_path, pretrain__precision="bf16")
    assert np.isfinite([row["calibration_ppl"] for row in trainer.run().curve]).all()


def test_confidence_signals_rank_by_their_definition(data, tmp_path):
    trainer = make_trainer(data, tmp_path)
    model = trainer.model
    x, targets, _ = InContext(model, trainer.train, 0, torch.device("cpu")).batch(torch.arange(4))
    p = model.logits(0, x).softmax(-1)
    matrices = [model.readout_matrix(0).detach()]
    with torch.no_grad():
        torch.testing.assert_close(make_confidence("max_prob", model, matrices)(0, x, targets), p.amax(-1))
        wanted = p.gather(-1, targets[..., None])[..., 0]
        torch.testing.assert_close(make_confidence("correct_prob", model, matrices)(0, x, targets), wanted)


@pytest.mark.parametrize("loss", [float("inf"), float("nan"), 1e3])
def test_a_calibration_loss_that_is_no_number_is_named_with_its_phase(data, tmp_path, loss):
    """It would stand in metrics/pretrain.json otherwise."""
    trainer = make_trainer(data, tmp_path, pretrain__method="final", pretrain__head="shared")
    trainer._exit_nlls = lambda exits: dict.fromkeys(exits, loss)
    with pytest.raises(UserError, match=r"pretrain: .*calibration loss.*lower pretrain\.learning_rate"):
        trainer.run()


def test_without_a_clip_norm_gradients_stay_as_they_are(data, tmp_path):
    """As with one that no gradient reaches."""
    curves = [
        make_trainer(data, tmp_path / str(norm), pretrain__clip_norm=norm, steps=4).run().curve
        for norm in (None, 1e6)
    ]
    assert curves[0] == curves[1]
    assert (
        curves[0] != make_trainer(data, tmp_path / "clipped", pretrain__clip_norm=1e-3, steps=4).run().curve
    )
