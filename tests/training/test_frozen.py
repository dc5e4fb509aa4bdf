"""Translators of a frozen model: the chunked divergence is the textbook one, and training moves nothing but
them."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from offramp.errors import UserError
from offramp.models.blockwise import Blockwise
from offramp.training import frozen, least_squares, losses
from offramp.training.losses import CHUNK, VocabularySample, likeliest, total_divergences
from offramp.training.snapshots import Snapshots
from tests.fixtures.pretrained_training import make_trainer


@settings(deadline=None, max_examples=30)
@given(
    tokens=st.integers(1, 3 * CHUNK),
    vocabulary=st.integers(1, 50),
    width=st.integers(1, 12),
    exits=st.integers(2, 4),
    seed=st.integers(0, 2**31),
)
def test_chunked_divergences_and_their_gradients_equal_the_plain_formula(
    tokens, vocabulary, width, exits, seed
):
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(tokens, width, generator=generator).requires_grad_() for _ in range(exits)]
    matrices = [torch.randn(vocabulary, width, generator=generator) for _ in range(exits)]
    scales = torch.rand(exits - 1, generator=generator)
    divergences = torch.stack(total_divergences(inputs, matrices))
    (divergences * scales).sum().backward()
    gradients = [x.grad.clone() for x in inputs[:-1]]
    assert inputs[-1].grad is None
    predicted = [F.log_softmax(x @ matrix.T, dim=-1) for x, matrix in zip(inputs, matrices)]
    wanted = torch.stack(
        [F.kl_div(exit, predicted[-1].detach(), log_target=True, reduction="sum") for exit in predicted[:-1]]
    )
    torch.testing.assert_close(divergences, wanted, atol=1e-3, rtol=1e-4)
    for gradient, x in zip(gradients, torch.autograd.grad((wanted * scales).sum(), inputs[:-1])):
        torch.testing.assert_close(gradient, x, atol=1e-4, rtol=1e-4)


@settings(deadline=None, max_examples=40)
@given(
    tokens=st.integers(1, 20),
    certain=st.integers(0, 10),
    others=st.integers(1, 30),
    drawn=st.integers(1, 40),
    seed=st.integers(0, 2**31),
)
def test_a_sample_gives_the_exact_divergence_where_the_entries_it_draws_from_are_alike(
    tokens, certain, others, drawn, seed
):
    """Entries with equal rows have equal logits, and any of them stand for all."""
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(tokens, 5, generator=generator).requires_grad_() for _ in range(2)]
    matrix = torch.randn(certain + 1, 5, generator=generator)
    matrix = torch.cat([matrix, matrix[-1:].expand(others - 1, -1)])[
        torch.randperm(certain + others, generator=generator)
    ]
    copies = (matrix.unsqueeze(0) == matrix.unsqueeze(1)).all(-1).sum(-1)
    mask = copies < max(2, others) if others > 1 else torch.zeros(len(matrix), dtype=torch.bool)
    sample = VocabularySample.draw(mask, generator, drawn)
    if sample.log_weights is None:
        assert len(sample.rows(matrix)) == len(matrix)
    elif others > 1:
        assert len(sample.entries) == certain + drawn and mask[sample.entries].sum() == certain
    if others == 1 and sample.log_weights is not None:
        return
    estimate, exact = (
        total_divergences(inputs, [rows] * 2, weights)[0]
        for rows, weights in ((sample.rows(matrix), sample.log_weights), (matrix, None))
    )
    torch.testing.assert_close(estimate, exact, atol=1e-4, rtol=1e-4)
    for ours, wanted in zip(
        torch.autograd.grad(estimate, inputs[0]), torch.autograd.grad(exact, inputs[0]), strict=True
    ):
        torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=1e-4)


def test_samples_weigh_as_much_as_the_vocabulary_on_average_and_come_near_its_divergence():
    """With what is likely for sure, and a tenth of the rest."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(2000, 8, generator=generator)
    last = torch.randn(64, 8, generator=generator)
    exit = last + 0.5 * torch.randn(64, 8, generator=generator)
    certain = torch.zeros(2000, dtype=torch.bool)
    certain[likeliest(last, matrix).flatten()] = True
    assert (
        torch.equal(likeliest(last, matrix), (last @ matrix.T).topk(losses.LIKELY).indices)
        and 300 < certain.sum() < 1000
    )
    exact = total_divergences([exit, last], [matrix] * 2)[0] / 64
    estimates, totals = [], []
    for seed in range(200):
        sample = VocabularySample.draw(certain, torch.Generator().manual_seed(seed), 150)
        estimates.append(
            total_divergences([exit, last], [sample.rows(matrix)] * 2, sample.log_weights)[0] / 64
        )
        totals.append((sample.log_weights + last @ sample.rows(matrix).T).exp().sum(-1))
    torch.testing.assert_close(
        torch.stack(totals).mean(0), (last @ matrix.T).exp().sum(-1), rtol=0.05, atol=0
    )
    estimates = torch.stack(estimates)
    assert (estimates - exact).abs().max() < 0.1 * exact
    assert (estimates.mean() - exact).abs() < 0.01 * exact
    [zero] = total_divergences([last, last], [sample.rows(matrix)] * 2, sample.log_weights)
    assert abs(zero) < 1e-4


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.elements = max(
            self.elements, *(leaf.numel() for leaf in tree_leaves(out) if isinstance(leaf, torch.Tensor)), 0
        )
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_more_logits_than_a_chunk_exist_at_a_time(dtype):
    inputs = [torch.randn(10 * CHUNK, 2, requires_grad=True) for _ in range(3)]
    matrices = [torch.randn(500, 2)] * 3
    with Largest() as largest, torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        sum(total_divergences(inputs, matrices)).backward()
    assert largest.elements == CHUNK * 500


@pytest.mark.parametrize("translator", ["affine", "low_rank", "mlp", "block"])
def test_training_lowers_the_divergence_of_every_exit_and_changes_no_weight_of_the_model(
    data, tmp_path, translator
):
    trainer = make_trainer(
        data, tmp_path, translator, method="frozen", learning_rate=0.04, frozen__init="identity"
    )
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    result = trainer.run()
    changed = {
        name for name, value in trainer.model.state_dict().items() if not torch.equal(before[name], value)
    }
    assert changed == {name for name in before if name.startswith("translators.")}
    by_step = {exit: {row["step"]: row for row in result.curve if row["exit"] == exit} for exit in (0, 1)}
    for rows in by_step.values():
        assert list(rows) == [0, 4, 8, 12] and rows[0]["train_loss"] is None
        kept = rows[result.best["frozen"]["best_step"]]
        assert kept["calibration_kl"] < 0.95 * rows[0]["calibration_kl"]
        assert kept["train_loss"] == pytest.approx(kept["calibration_kl"], rel=0.3)
    kept = [rows[result.best["frozen"]["best_step"]] for rows in by_step.values()]
    assert result.best["frozen"]["calibration_kl"] == pytest.approx(
        np.mean([row["calibration_kl"] for row in kept])
    )
    assert result.best["frozen"]["calibration_ppl"] == pytest.approx(
        np.exp(np.mean([np.log(row["calibration_ppl"]) for row in kept]))
    )


@pytest.mark.parametrize("translator", ["affine", "block"])
def test_a_look_is_the_divergence_and_loss_of_the_whole_logits(data, tmp_path, translator):
    """States in half precision take a part in a thousand off it."""
    trainer = make_trainer(data, tmp_path, translator, method="frozen")
    phase = trainer._phase(0, fresh=True)
    inputs, targets = trainer.calibration.batch(trainer.looks)
    with torch.no_grad():
        *exits, last = (
            trainer.model.logits(exit, trainer.model.exit_states(exit, x)).log_softmax(-1)
            for exit, x in enumerate(trainer.model(inputs))
        )
    for exit, look in phase.evaluate().items():
        divergence = (last.exp() * (last - exits[exit])).sum(-1).mean()
        loss = -exits[exit].gather(-1, targets[..., None]).mean()
        assert (look.kl, look.nll) == (
            pytest.approx(divergence.item(), rel=1e-3),
            pytest.approx(loss.item(), rel=1e-3),
        )


def test_without_translators_the_model_is_looked_at_and_nothing_trained(data, tmp_path):
    result = make_trainer(data, tmp_path, "identity", method="frozen").run()
    assert [(row["exit"], row["step"]) for row in result.curve] == [(0, 0), (1, 0)]
    assert result.best["frozen"]["steps"] == 0


def test_a_start_that_training_does_not_improve_on_is_kept(data, tmp_path):
    trainer = make_trainer(
        data,
        tmp_path,
        "affine",
        method="frozen",
        frozen__init="identity",
        learning_rate=10.0,
        patience=2,
    )
    result = trainer.run()
    assert result.best["frozen"]["best_step"] == 0 < result.best["frozen"]["steps"]
    assert all(not translator.last.weight.any() for translator in trainer.model.translators)


class Interrupted(Exception):
    """Stands for a kill."""


@pytest.mark.parametrize(
    ("translator", "changes"),
    [
        ("mlp", {"method": "frozen"}),
        (
            "identity",
            {
                "method": "joint",
                "lora": {"rank": 2, "alpha": 4},
                "layer_dropout": 0.5,
                "curriculum": "rotational",
            },
        ),
    ],
    ids=["frozen", "joint"],
)
def test_an_interrupted_training_ends_with_the_weights_of_a_straight_one(data, tmp_path, translator, changes):
    straight = make_trainer(data, tmp_path / "straight", translator, **changes)
    expected = straight.run()

    class StopsAfter(Snapshots):
        def due(self):
            return True

        def save(self, state, returns_to):
            super().save(state, returns_to)
            if state["progress"]["step"] == 6:
                raise Interrupted

    interrupted = make_trainer(data, tmp_path / "resumed", translator, **changes)
    interrupted.snapshots = StopsAfter(tmp_path / "resumed/resume", 0)
    with pytest.raises(Interrupted):
        interrupted.run()
    saved = torch.load(tmp_path / "resumed/resume/snapshot.pt", weights_only=True)
    assert all(name.startswith("translators.") or ".lora_" in name for name in saved["model"])
    resumed = make_trainer(data, tmp_path / "resumed", translator, **changes)
    result = resumed.run()
    assert result.curve == expected.curve and result.best == expected.best
    weights = straight.model.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in resumed.model.state_dict().items())


@pytest.mark.parametrize("translator", ["affine", "low_rank"])
def test_least_squares_begin_where_they_are_better_and_what_is_learned_is_better_still(
    data, tmp_path, translator
):
    begun = {}
    for init in ("identity", "least_squares"):
        trainer = make_trainer(
            data,
            tmp_path / init,
            translator,
            method="frozen",
            frozen__init=init,
            learning_rate=0.003,
            steps=40,
        )
        result = trainer.run()
        begun[init] = np.mean([row["calibration_kl"] for row in result.curve if row["step"] == 0])
    assert begun["least_squares"] < 0.8 * begun["identity"]
    assert result.best["frozen"]["calibration_kl"] < 0.99 * begun["least_squares"]


def test_a_killed_pass_over_the_text_goes_on_where_it_was_and_ends_with_the_same_bytes(
    data, tmp_path, monkeypatch
):
    def run(folder):
        trainer = make_trainer(data, folder, "affine", method="frozen", frozen__tokens=4096)
        trainer.snapshots.every_seconds = 0
        trainer.run()
        return trainer.model.state_dict()

    ran, forward = [0], Blockwise.forward

    def counted(model, tokens):
        ran[0] += tokens.numel()
        return forward(model, tokens)

    monkeypatch.setattr(Blockwise, "forward", counted)
    expected = run(tmp_path / "straight")
    whole = ran[0]

    save = Snapshots.save

    def save_and_stop(self, state, returns_to=None):
        save(self, state, returns_to)
        if self.folder.name.startswith("progress_train") and state["batches"] == 3:
            raise Interrupted

    with monkeypatch.context() as killed, pytest.raises(Interrupted):
        killed.setattr(Snapshots, "save", save_and_stop)
        run(tmp_path / "resumed")
    resumed = run(tmp_path / "resumed")
    assert all(torch.equal(expected[name], value) for name, value in resumed.items())
    assert ran[0] == 2 * whole  # no window twice


def test_no_state_is_run_again_in_later_epochs_and_the_budget_is_kept(data, tmp_path, monkeypatch):
    trainer = make_trainer(data, tmp_path, "affine", method="frozen", frozen__tokens=1000, steps=30)
    window, passes = trainer.train.window, []
    forward = Blockwise.forward
    monkeypatch.setattr(
        Blockwise, "forward", lambda model, tokens: passes.append(len(tokens)) or forward(model, tokens)
    )
    trainer.run()
    assert sum(passes) == 1000 // window + len(trainer.looks) < 30 * trainer.config.batch_size


def test_too_few_tokens_for_least_squares_are_named_before_any_pass(data, tmp_path, monkeypatch):
    monkeypatch.setattr(Blockwise, "forward", None)
    monkeypatch.setattr(least_squares, "TOKENS_PER_FEATURE", 5)
    trainer = make_trainer(data, tmp_path, "affine", method="frozen", frozen__tokens=79)
    with pytest.raises(
        UserError, match=r"pretrain\.frozen\.tokens: 64 tokens are too few .* 16 features.* at least 80"
    ):
        trainer.run()


def test_several_samples_train_to_what_the_whole_vocabulary_does(data, tmp_path, monkeypatch):
    """A vocabulary larger than likely and drawn entries together."""
    ends = {}
    for drawn in (10**6, 64):
        monkeypatch.setattr(frozen.VocabularySample.draw.__func__, "__defaults__", (drawn,))
        trainer = make_trainer(data, tmp_path / str(drawn), "affine", method="frozen")
        result = trainer.run()
        ends[drawn] = [row["calibration_kl"] for row in result.curve if row["step"] == 12]
    assert ends[64] == pytest.approx(ends[10**6], abs=0.01) and ends[64] != ends[10**6]


def test_precision_is_that_of_autocast(data, tmp_path):
    """In bf16 the losses differ a little from fp32's, and gradients of fp32 translators stay fp32."""
    losses = {}
    for precision in ("fp32", "bf16"):
        trainer = make_trainer(data, tmp_path, "affine", method="frozen", precision=precision)
        phase = trainer._phase(0, fresh=True)
        [part] = phase.losses(torch.arange(8), 0)
        losses[precision] = part["exit 0"].mean
        losses[precision].backward()
        assert all(
            parameter.grad.dtype == torch.float32 for parameter in trainer.model.translators[0].parameters()
        )
    assert losses["bf16"] != losses["fp32"] and losses["bf16"].item() == pytest.approx(
        losses["fp32"].item(), rel=0.05
    )


def test_states_that_are_gone_are_computed_again(data, tmp_path):
    """A kill in the midst of removing them left how far the pass over the text had come, but no states.

    Once the next run took them for zeros, and the learning curve for what they gave.
    """

    def run(folder):
        trainer = make_trainer(data, folder, "affine", method="frozen", frozen__tokens=4096)
        trainer.snapshots.every_seconds = 1e9
        return trainer.run().curve

    expected = run(tmp_path)
    for name in ("states_train", "states_calibration"):
        shutil.rmtree(tmp_path / "resume" / name)
    assert run(tmp_path) == expected
