"""Random text and untrained models: what a pass costs does not depend on what it says."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from offramp.models.native import BlockwiseLM, ModelConfig


class RandomWindows:
    """Stands in for TokenWindows: ``count`` windows of Zipf-distributed tokens, in memory."""

    def __init__(self, count: int, window: int, vocab_size: int, seed: int = 0):
        self.window, self.vocab_size = window, vocab_size
        share = 1 / (np.arange(vocab_size) + 2.7)
        uniform = np.random.default_rng(seed).random(count * window + 1)
        self._stream = torch.from_numpy(np.searchsorted(np.cumsum(share / share.sum()), uniform)).clamp_max(vocab_size - 1)

    def __len__(self) -> int:
        return (len(self._stream) - 1) // self.window

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, T)."""
        tokens = self._stream[indices.unsqueeze(1) * self.window + torch.arange(self.window + 1)]
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def documents(self, indices: Tensor) -> np.ndarray:
        """(B, T): sixteen windows to a document."""
        return np.repeat(indices.numpy()[:, None] // 16, self.window, axis=1)


def model(vocab_size: int, window: int, width: int, heads: int, ffn_width: int, block_layers: tuple[int, ...],
          **others) -> BlockwiseLM:
    """An untrained model, the same every time."""
    torch.manual_seed(0)
    return BlockwiseLM(ModelConfig(vocab_size, window, width, heads, ffn_width, block_layers, **others)).eval()


def default_model() -> BlockwiseLM:
    """The sizes of the committed params.yaml."""
    from benchmarks.measure import ROOT
    from offramp.params import load_params

    params = load_params("pretrain", ROOT)
    sizes = params.model.model_dump()
    return model(load_params("prepare", ROOT).tokenizer.vocab_size, load_params("prepare", ROOT).window,
                 **{**sizes, "block_layers": tuple(sizes["block_layers"])}, heads_per_exit=params.pretrain.head == "per_block")
