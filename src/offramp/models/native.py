"""The transformer of this project: embed -> block 0 .. block K-1, with a readout after every block."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from offramp.models.blockwise import Blockwise
from offramp.nn.layers import TransformerLayer, rotary_table


@dataclass(frozen=True)
class ModelConfig:
    """Everything that is needed to build the model again; stored beside its weights."""

    vocab_size: int
    window: int
    """Longest sequence, in tokens."""
    width: int
    heads: int
    ffn_width: int
    block_layers: tuple[int, ...]
    """Layers of each block; there is one exit after each block."""
    norm: str = "pre"
    """pre: norms before a layer's parts, and a final norm per exit; post: after them, and no final norm."""
    tied: bool = True
    """Whether the first readout matrix is the embedding matrix."""
    heads_per_exit: bool = False
    """Whether every exit has a readout matrix, instead of one for all."""
    exited_state: str = "output"
    """What stands for a token that left after block k in later layers: the output or the input of block k."""
    exit_classifiers: bool = False
    """Whether linear exit classifiers (D -> 1 logit) are trained together with the blocks."""
    key_value_heads: int | None = None
    """Heads of keys and values, each shared by as many query heads; None: every head has its own."""

    @property
    def num_blocks(self) -> int:
        return len(self.block_layers)

    def to_json(self) -> dict[str, Any]:
        """The configuration as plain values."""
        return {**asdict(self), "block_layers": list(self.block_layers)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> ModelConfig:
        """The configuration that ``to_json`` wrote."""
        return cls(**{**values, "block_layers": tuple(values["block_layers"])})


class BlockwiseLM(Blockwise):
    """A native model, with random weights until some are loaded; ``Blockwise`` says what its methods do."""

    config: ModelConfig

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                TransformerLayer(
                    config.width,
                    config.heads,
                    config.ffn_width,
                    config.norm,
                    key_value_heads=config.key_value_heads,
                )
                for _ in range(layers)
            )
            for layers in config.block_layers
        )
        self.norms = nn.ModuleList(
            nn.RMSNorm(config.width, eps=1e-6) if config.norm == "pre" else nn.Identity()
            for _ in config.block_layers
        )
        num_heads = (config.num_blocks if config.heads_per_exit else 1) - config.tied
        self.heads = nn.ParameterList(
            nn.Parameter(torch.empty(config.vocab_size, config.width)) for _ in range(num_heads)
        )
        num_classifiers = config.num_blocks - 1 if config.exit_classifiers else 0
        self.exit_classifiers = nn.ModuleList(nn.Linear(config.width, 1) for _ in range(num_classifiers))
        cos, sin = rotary_table(config.window, config.width // config.heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw all matrices from Normal(0, 0.02), as GPT-2 does.

        Matrices that write into the residual stream are scaled by 1 / sqrt(2 layers).
        """
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)
        for classifier in cast("Iterable[nn.Linear]", self.exit_classifiers):
            nn.init.zeros_(classifier.bias)
        std = 0.02 / math.sqrt(2 * sum(self.config.block_layers))
        for block in cast("Iterable[Iterable[TransformerLayer]]", self.blocks):
            for layer in block:
                for matrix in (layer.attn_out, layer.ffn_out):
                    nn.init.normal_(matrix.weight, std=std)

    def embed(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        return self.embedding(tokens)

    def readout_matrix(self, exit: int) -> Tensor:
        index = exit if self.config.heads_per_exit else 0
        if self.config.tied:
            return self.embedding.weight if index == 0 else self.heads[index - 1]
        return self.heads[index]

    def readout_input(self, exit: int, x: Tensor) -> Tensor:
        return self.norms[exit](x)
