"""A checkpoint folder, and a batch of token ids and targets that every model of these tests knows."""

from __future__ import annotations

import pytest
import torch

from tests.fixtures.checkpoints import save_checkpoint

WINDOW, VOCAB = 24, 61


@pytest.fixture
def folder(tmp_path):
    return save_checkpoint(tmp_path / "tiny", 300)


@pytest.fixture
def batch():
    return torch.randint(VOCAB, (2, 3, WINDOW), generator=torch.Generator().manual_seed(1))
