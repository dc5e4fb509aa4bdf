"""What the pipeline needs of any language model: embed -> block 0 .. block K-1, with a readout after every block."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Sizes(Protocol):
    """What every model's configuration says."""

    vocab_size: int
    window: int
    """Longest sequence, in tokens."""
    width: int
    block_layers: tuple[int, ...]
    exited_state: str
    """What stands for a token that left after block k in later layers: the output or the input of block k."""

    @property
    def num_blocks(self) -> int: ...


class Blockwise(nn.Module):
    """A decoder-only language model cut into blocks.

    ``embed`` tokens, ``run_block`` on hidden states, ``readout`` (final norm and matrix) after a block, and layers
    that can project the keys and values of a token that has left (state propagation, CALM, arXiv 2207.07061): see
    ``nn.layers.TransformerLayer`` for what a layer must offer.
    """

    config: Sizes
    blocks: nn.ModuleList
    """Per block its layers."""
    exit_classifiers: nn.ModuleList
    """Those trained together with the blocks, if any."""
    cos: Tensor
    sin: Tensor
    """Rotary tables (window, R / 2); of width 0 for models with other positions."""
    gradient_checkpointing = False
    """Whether a layer runs again in the backward pass, from what it was given, instead of keeping all it made (arXiv 1604.06174)."""

    def embed(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """Hidden states (..., D) of token ids (..., T), at ``positions`` of that shape; from 0 on where None."""
        raise NotImplementedError

    def readout_matrix(self, exit: int) -> Tensor:
        """W (V, D) of the exit after block ``exit``."""
        raise NotImplementedError

    def exit_layer(self, exit: int) -> Any | None:
        """A transformer layer of the exit's own between its block and its readout (EE-LLM, arXiv 2312.04916), or None.

        A token that is read out there attends in it to itself and to earlier tokens of its sequence: with ``kv`` propagate or
        recompute to all of them, with drop to those that entered the block. Later blocks do not see what it makes.
        """
        return None

    def exit_states(self, exit: int, x: Tensor) -> Tensor:
        """What the exit reads out, (B, T, D), of hidden states (B, T, D) of whole sequences after its block."""
        layer = self.exit_layer(exit)
        return x if layer is None else self.run_layer(layer, x)

    def readout_input(self, exit: int, x: Tensor) -> Tensor:
        """What the readout matrix is applied to, of exit states (..., D): those after the exit's final norm."""
        raise NotImplementedError

    def readout_flops(self, exit: int) -> int:
        """FLOPs of one token's readout, without the exit's own layer."""
        return 2 * self.config.width * self.config.vocab_size

    def run_layer(self, layer: nn.Module, x: Tensor) -> Tensor:
        """Hidden states (B, T, D) after one layer, every token attending to itself and earlier ones."""
        given = x, self.cos[: x.shape[1]], self.sin[: x.shape[1]]
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(
                layer, *given, use_reentrant=False, preserve_rng_state=False
            )  # nothing in a layer is drawn
        return layer(*given)

    def run_block(self, block: int, x: Tensor) -> Tensor:
        """Hidden states (B, T, D) after block ``block``, every token attending to itself and earlier ones."""
        return self.run_block_in_parts(block, x)[1]

    def run_block_in_parts(self, block: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Hidden states (B, T, D) before the last layer of block ``block``, and after it."""
        before = x
        for layer in self.blocks[block]:
            before, x = x, self.run_layer(layer, x)
        return before, x

    def logits(self, exit: int, x: Tensor) -> Tensor:
        """Logits (..., V) of exit states (..., D). For small inputs only: a pass over a corpus goes through ``token_statistics``."""
        return self.readout_input(exit, x) @ self.readout_matrix(exit).T

    def forward(self, tokens: Tensor) -> list[Tensor]:
        """Hidden states (B, T, D) after every block."""
        x, states = self.embed(tokens), []
        for block in range(self.config.num_blocks):
            x = self.run_block(block, x)
            states.append(x)
        return states
