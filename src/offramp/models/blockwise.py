"""What the pipeline needs of any model: embed -> block 0 .. block K-1, with a readout after every block.

Shapes: B sequences, T tokens of each, V entries of the vocabulary, D width, K blocks, R rotated dimensions of
a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from offramp.nn.layers import Layer


class LMConfig(Protocol):
    """What the configuration of every model says."""

    @property
    def vocab_size(self) -> int:
        """Entries of the vocabulary."""
        ...

    @property
    def window(self) -> int:
        """Longest sequence, in tokens."""
        ...

    @property
    def width(self) -> int:
        """Dimensions of a hidden state."""
        ...

    @property
    def num_blocks(self) -> int:
        """Number of blocks, and of exits."""
        ...

    @property
    def block_layers(self) -> tuple[int, ...]:
        """Layers of each block; there is one exit after each block."""
        ...

    @property
    def exited_state(self) -> str:
        """What stands in later layers for a token that left after block k: the block's output or input."""
        ...

    def to_json(self) -> dict[str, Any]:
        """The configuration as plain values."""
        ...


class Blockwise(nn.Module):
    """A decoder-only language model cut into blocks.

    It embeds tokens (``embed``), runs a block on hidden states (``run_block``), reads out logits after any
    block (``logits``), and its layers can project the keys and values of a token that has left
    (``nn.layers.Layer``).
    """

    config: LMConfig
    blocks: nn.ModuleList
    """The layers of every block, a ModuleList each."""
    exit_classifiers: nn.ModuleList
    """Linear exit classifiers trained together with the blocks, one per exit but the last; or none."""
    cos: Tensor
    sin: Tensor
    """Rotary tables (window, R / 2); of width 0 for models with other positions."""
    gradient_checkpointing = False
    """Whether layers run again in the backward pass, to keep less in memory (arXiv 1604.06174)."""

    @property
    def layers(self) -> Sequence[Sequence[Layer]]:
        """The layers of every block: ``blocks`` with the type of its members, for type checkers."""
        return cast("Sequence[Sequence[Layer]]", self.blocks)

    def embed(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """Hidden states (..., T, D) of token ids (..., T) at ``positions``, by default 0 .. T-1."""
        raise NotImplementedError

    def readout_matrix(self, exit: int) -> Tensor:
        """The readout matrix W (V, D) of the exit after block ``exit``."""
        raise NotImplementedError

    def exit_layer(self, exit: int) -> Layer | None:
        """The transformer layer between an exit's block and its readout (EE-LLM, arXiv 2312.04916), or None.

        A token that is read out there attends in it to itself and to earlier tokens of its sequence: with
        ``routing.kv`` propagate or recompute to all of them, with drop to those that entered the block. Later
        blocks do not see the state after it.
        """
        return None

    def exit_states(self, exit: int, x: Tensor) -> Tensor:
        """Exit states (B, T, D) of whole sequences: hidden states x after ``exit_layer``, if there is one."""
        layer = self.exit_layer(exit)
        return x if layer is None else self.run_layer(layer, x)

    def readout_input(self, exit: int, x: Tensor) -> Tensor:
        """What the readout matrix is applied to, (..., D): exit states x after final norm and translator."""
        raise NotImplementedError

    def readout_flops(self, exit: int) -> int:
        """FLOPs of one token's readout, without those of ``exit_layer`` (a multiply-add counts two)."""
        return 2 * self.config.width * self.config.vocab_size

    def run_layer(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Hidden states (B, T, D) after one layer, every token attending to itself and earlier ones."""
        inputs = x, self.cos[: x.shape[1]], self.sin[: x.shape[1]]
        if self.gradient_checkpointing and torch.is_grad_enabled():
            # no layer draws random numbers, so their state need not be kept
            return checkpoint(layer, *inputs, use_reentrant=False, preserve_rng_state=False)
        return layer(*inputs)

    def run_block(self, block: int, x: Tensor) -> Tensor:
        """Hidden states (B, T, D) after block ``block``, every token attending to itself and earlier ones."""
        return self.run_block_in_parts(block, x)[1]

    def run_block_in_parts(self, block: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states (B, T, D) before the last layer of block ``block``, and after it."""
        before = x
        for layer in self.layers[block]:
            before, x = x, self.run_layer(layer, x)
        return before, x

    def logits(self, exit: int, x: Tensor) -> Tensor:
        """Logits (..., V) of exit states x (..., D).

        For few tokens only: statistics of a whole corpus come from ``states.statistics``, which never holds
        all logits.
        """
        return self.readout_input(exit, x) @ self.readout_matrix(exit).T

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """Hidden states (B, T, D) after every block."""
        x, states = self.embed(tokens), []
        for block in range(self.config.num_blocks):
            x = self.run_block(block, x)
            states.append(x)
        return states
