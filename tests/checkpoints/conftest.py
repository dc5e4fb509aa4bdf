"""A checkpoint folder that every test of this room may damage."""

from __future__ import annotations

import pytest
from transformers import AutoModelForCausalLM

from tests.fixtures.checkpoints import save_checkpoint


@pytest.fixture
def folder(tmp_path):
    return save_checkpoint(tmp_path / "tiny", 300)


@pytest.fixture
def shards(folder):
    """The same weights in several files, and their index."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="60KB")
    return sorted(folder.glob("model-*.safetensors"))
