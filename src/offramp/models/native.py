"""The native block-wise transformer: embed -> block 0 .. block K-1, with a readout after every block."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from offramp.nn.layers import TransformerLayer, rotary_table


@dataclass(frozen=True)
class ModelConfig:
    """Everything needed to build the model again; stored beside its weights."""

    vocab_size: int
    window: int
    """Longest sequence, in tokens."""
    width: int
    heads: int
    ffn_width: int
    block_layers: tuple[int, ...]
    """Layers of each block; there is one exit after each block."""
    norm: str = "pre"
    """pre (a final norm per exit) or post (the seeds' layout: no final norm)."""
    tied: bool = True
    """The first readout matrix is the embedding matrix."""
    heads_per_exit: bool = False
    """One readout matrix per exit instead of one for all."""
    exited_state: str = "output"
    """What stands for a token that left after block k in later layers: the output or the input of block k."""
    exit_classifiers: bool = False
    """Linear exit classifiers (D -> 1 logit) trained together with the blocks (seed 003, mode joint)."""

    @property
    def num_blocks(self) -> int:
        return len(self.block_layers)

    def to_json(self) -> dict:
        return {**asdict(self), "block_layers": list(self.block_layers)}

    @classmethod
    def from_json(cls, values: dict) -> ModelConfig:
        return cls(**{**values, "block_layers": tuple(values["block_layers"])})


class BlockwiseLM(nn.Module):
    """A decoder-only language model cut into blocks.

    What every model of the pipeline offers: ``embed`` tokens, ``run_block`` on hidden states, ``readout``
    (final norm and matrix) after a block, and layers that can project the keys and values of a token
    that has left (state propagation, CALM, arXiv 2207.07061).
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                TransformerLayer(config.width, config.heads, config.ffn_width, config.norm) for _ in range(layers)
            )
            for layers in config.block_layers
        )
        self.norms = nn.ModuleList(
            nn.RMSNorm(config.width, eps=1e-6) if config.norm == "pre" else nn.Identity() for _ in config.block_layers
        )
        num_own = (config.num_blocks if config.heads_per_exit else 1) - config.tied
        self.heads = nn.ParameterList(nn.Parameter(torch.empty(config.vocab_size, config.width)) for _ in range(num_own))
        num_classifiers = config.num_blocks - 1 if config.exit_classifiers else 0
        self.exit_classifiers = nn.ModuleList(nn.Linear(config.width, 1) for _ in range(num_classifiers))
        cos, sin = rotary_table(config.window, config.width // config.heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normal(0, 0.02); matrices that write into the residual stream are scaled by 1/sqrt(2 layers) (GPT-2)."""
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=0.02)
        for classifier in self.exit_classifiers:
            nn.init.zeros_(classifier.bias)
        for block in self.blocks:
            for layer in block:
                for matrix in (layer.attn_out, layer.ffn_out):
                    nn.init.normal_(matrix.weight, std=0.02 / math.sqrt(2 * sum(self.config.block_layers)))

    def embed(self, tokens: Tensor) -> Tensor:
        """Hidden states (B, T, D) of token ids (B, T)."""
        return self.embedding(tokens)

    def run_block(self, block: int, x: Tensor) -> Tensor:
        """Hidden states (B, T, D) after block ``block``, every token attending to itself and earlier ones."""
        return self.run_block_in_parts(block, x)[1]

    def run_block_in_parts(self, block: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states (B, T, D) before the last layer of block ``block``, and after it."""
        length, before = x.shape[1], x
        for layer in self.blocks[block]:
            before, x = x, layer(x, self.cos[:length], self.sin[:length])
        return before, x

    def readout_matrix(self, exit: int) -> Tensor:
        """W (V, D) of the exit after block ``exit``."""
        index = exit if self.config.heads_per_exit else 0
        if self.config.tied:
            return self.embedding.weight if index == 0 else self.heads[index - 1]
        return self.heads[index]

    def readout_input(self, exit: int, x: Tensor) -> Tensor:
        """What the readout matrix is applied to: the final norm of hidden states (..., D)."""
        return self.norms[exit](x)

    def logits(self, exit: int, x: Tensor) -> Tensor:
        """Logits (..., V). For small inputs only: a pass over a corpus goes through ``token_statistics``."""
        return self.readout_input(exit, x) @ self.readout_matrix(exit).T

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """Hidden states (B, T, D) after every block."""
        x, states = self.embed(tokens), []
        for block in range(self.config.num_blocks):
            x = self.run_block(block, x)
            states.append(x)
        return states
