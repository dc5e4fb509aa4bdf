"""Models of checkpoints that were saved come back as they were."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from offramp.artifacts.artifact import create_artifact, open_artifact
from offramp.checkpoints.checkpoint import Checkpoint
from offramp.errors import UserError
from offramp.models.pretrained import load_pretrained
from offramp.models.store import load_model, save_model
from tests.fixtures.checkpoints import edit_json, save_checkpoint
from tests.models.conftest import VOCAB, WINDOW


@torch.no_grad()
@pytest.mark.parametrize("translator", ["affine", "block"])
def test_trained_weights_come_back_without_the_checkpoints(tmp_path, batch, translator):
    """Saved whole, a model needs its checkpoint for nothing."""
    folder = save_checkpoint(tmp_path / "tiny", VOCAB, text="")
    model = load_pretrained(Checkpoint(str(folder)), exits_after=[2], window=WINDOW, translator=translator)
    for parameter in model.parameters():
        parameter += 0.01
    with create_artifact(tmp_path / "lm", "lm", {}, {}) as out:
        save_model(model, out.path)
    for file in folder.iterdir():
        file.unlink()
    again = load_model(open_artifact(tmp_path / "lm", "lm"))
    assert again.config == model.config and all(
        torch.equal(*states) for states in zip(model(batch[0]), again(batch[0]))
    )
    states = model(batch[0])[0]
    read_again, read = (some.readout_input(0, some.exit_states(0, states)) for some in (again, model))
    assert torch.equal(read_again, read) and not torch.equal(read, model.norm(states))


@torch.no_grad()
def test_layers_of_exits_are_kept_beside_the_checkpoint(tmp_path, batch):
    folder = save_checkpoint(tmp_path / "tiny", VOCAB, text="")
    model = load_pretrained(Checkpoint(str(folder)), exits_after=[2], window=WINDOW, translator="block")
    for parameter in model.translators.parameters():
        parameter += 0.01
    with create_artifact(tmp_path / "lm", "lm", {}, {}) as out:
        save_model(model, out.path, base_trained=False)
    again = load_model(open_artifact(tmp_path / "lm", "lm"))
    assert torch.equal(*(some.exit_states(0, some(batch[0])[0]) for some in (model, again)))


@torch.no_grad()
def test_a_head_of_its_own_is_kept_though_the_configuration_says_tied(folder, tmp_path, batch):
    edit_json(folder / "config.json", tie_word_embeddings=True)
    model = load_pretrained(Checkpoint(str(folder)), exits_after=[2], window=32)
    assert model.head is not None
    with create_artifact(tmp_path / "lm", "lm", {}, {}) as out:
        save_model(model, out.path)
    again = load_model(open_artifact(tmp_path / "lm", "lm"))
    assert torch.equal(again.logits(1, again(batch[0])[1]), model.logits(1, model(batch[0])[1]))


@torch.no_grad()
def test_a_relative_path_starts_at_the_root_of_the_project(folder, tmp_path, batch, monkeypatch):
    monkeypatch.chdir(folder.parent)
    model = load_pretrained(Checkpoint(folder.name), exits_after=[2], window=32)
    with create_artifact(folder.parent / "lm", "lm", {}, {}) as out:
        save_model(model, out.path, base_trained=False)
    monkeypatch.chdir(Path(__file__).parent)
    again = load_model(open_artifact(folder.parent / "lm", "lm"), root=folder.parent)
    assert torch.equal(again(batch[0])[1], model(batch[0])[1]) and again.config == model.config
    for gone in (folder / "config.json", folder):
        shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
        with pytest.raises(
            UserError, match=r"no config\.json there; restore the checkpoint, or correct its name"
        ):
            load_model(open_artifact(folder.parent / "lm", "lm"), root=folder.parent)
