"""Hierarchical reasoning models (HRM, arXiv 2506.21734) of characters, in the report's versions 1 and 2.

n layers with states z_1 .. z_n and periods T_1 .. T_n share one window of tokens. A segment is N * max(T)
steps; at step s every layer i with (s + 1) mod T_i = 0 is updated:

    z_i <- Layer_i( z_i + sum_{j != i} z_j + [e where layer i reads the embedding] )

and the logits are head(z_n). Only the last steps of a segment are differentiated. Training by deep
supervision runs several segments on the same tokens, each with its own loss and optimiser step, from the
detached states of the one before.

Shapes: B sequences, T positions, n layers, D width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from offramp.errors import UserError
from offramp.nn.layers import TransformerLayer, require_heads, rotary_table
from offramp.systems.initial_weights import EMBEDDING_STD, truncated_normal

States = tuple[Tensor, ...]
"""One (B, T, D) per layer; empty where a segment starts from the learned initial states."""


@dataclass(frozen=True)
class Variant:
    """What sets the versions apart."""

    sequential: bool
    """A layer reads what the layers before it have just become (Gauss-Seidel), else the states before the
    step.
    """
    embedding_for_all: bool
    """The embedding enters every layer, else the first alone."""
    whole_cycle: bool
    """The last max(T) steps of a segment are differentiated, else the last step alone."""


VARIANTS = {
    "v1": Variant(sequential=True, embedding_for_all=False, whole_cycle=False),
    "v2": Variant(sequential=False, embedding_for_all=True, whole_cycle=True),
    "v2_published": Variant(sequential=False, embedding_for_all=True, whole_cycle=False),
}
"""v2_published differentiates one simultaneous step: the last layer then reads the others' old, detached
states, so that no gradient ever reaches those layers: the report's mistake. v2 differentiates a whole cycle,
in which every layer's update is read."""


@dataclass(frozen=True)
class HierarchicalConfig:
    """Sizes of a model and of its recurrence.

    Raises UserError for an unknown variant, for periods that no common segment length fits, and for heads
    that do not divide the width.
    """

    vocab_size: int
    window: int = 64
    """Longest sequence; initial states are learned per position."""
    width: int = 64
    heads: int = 4
    ffn_width: int = 256
    variant: str = "v2"
    periods: tuple[int, ...] = (1, 2)
    """Steps between two updates of each layer."""
    cycles: int = 1
    """N: how often the slowest layer is updated in a segment."""

    def __post_init__(self) -> None:
        if self.variant not in VARIANTS:
            raise UserError(f"variant = {self.variant!r} is no HRM; use one of {', '.join(VARIANTS)}")
        require_heads(self.width, self.heads)
        if self.cycles < 1 or not self.periods or min(self.periods) < 1:
            raise UserError(
                f"periods = {self.periods}, cycles = {self.cycles}: both count steps; use 1 or more"
            )
        longest = max(self.periods)
        if any(longest % period for period in self.periods) or self.periods[-1] != longest:
            raise UserError(
                f"periods = {self.periods} do not divide the last one, which ends a segment; use periods "
                f"such as {tuple(2**index for index in range(len(self.periods)))}"
            )

    @property
    def steps(self) -> int:
        """How many steps a segment has."""
        return self.cycles * max(self.periods)

    @property
    def differentiated(self) -> int:
        """Steps at the end of a segment that gradients pass through."""
        return max(self.periods) if VARIANTS[self.variant].whole_cycle else 1

    def updates(self, layer: int, steps: range) -> int:
        """How often ``layer`` is updated in ``steps``."""
        return sum((step + 1) % self.periods[layer] == 0 for step in steps)


class Hierarchy(nn.Module):
    """The states' initial values and their updates; what a layer computes is up to the caller."""

    def __init__(self, config: HierarchicalConfig):
        super().__init__()
        self.config, self.variant = config, VARIANTS[config.variant]
        before = range(config.steps - config.differentiated)
        # An initial state that is overwritten before the first differentiated step cannot learn.
        self.initial = nn.ParameterList(
            nn.Parameter(
                EMBEDDING_STD * torch.randn(config.window, config.width),
                requires_grad=not config.updates(layer, before),
            )
            for layer in range(len(config.periods))
        )

    def forward(self, embedded: Tensor, states: States, layer: Callable[[int, Tensor], Tensor]) -> States:
        """States after one segment from ``states``, or from the initial ones where there are none.

        ``embedded`` is e (B, T, D), and ``layer(i, x)`` gives Layer_i of x (B, T, D).
        """
        batch, length, _ = embedded.shape
        current = [state.detach() for state in states]
        if not current:
            current = [initial[:length].expand(batch, -1, -1) for initial in self.initial]
        first = self.config.steps - self.config.differentiated
        with torch.no_grad():
            for step in range(first):
                current = self._step(step, embedded, current, layer)
        for step in range(first, self.config.steps):
            current = self._step(step, embedded, current, layer)
        return tuple(current)

    def _step(
        self, step: int, embedded: Tensor, states: list[Tensor], layer: Callable[[int, Tensor], Tensor]
    ) -> list[Tensor]:
        new = list(states)
        for index, period in enumerate(self.config.periods):
            if (step + 1) % period == 0:
                total = cast(Tensor, sum(new if self.variant.sequential else states))
                reads = index == 0 or self.variant.embedding_for_all
                new[index] = layer(index, total + embedded if reads else total)
        return new


class HierarchicalLM(nn.Module):
    """HRM over characters: one post-norm layer per state, untied head without bias."""

    cos: Tensor
    sin: Tensor
    """Rotary tables (window, R / 2), R the dimensions of a head."""

    def __init__(self, config: HierarchicalConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.embedding = nn.Embedding(config.vocab_size, width)
        self.layers = nn.ModuleList(
            TransformerLayer(width, config.heads, config.ffn_width, "post") for _ in config.periods
        )
        self.head = nn.Linear(width, config.vocab_size, bias=False)
        # The report's models have it, and it counts in their sizes, but it is in none of their losses.
        self.halt = nn.Linear(width, 2, bias=False).requires_grad_(False)
        truncated_normal(self, 1 / math.sqrt(width))
        self.hierarchy = Hierarchy(config)
        cos, sin = rotary_table(config.window, width // config.heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, tokens: Tensor, states: States = ()) -> tuple[Tensor, States]:
        """One segment: logits (B, T, V) of tokens (B, T), and the states for the next segment."""
        length = tokens.shape[1]
        states = self.hierarchy(
            self.embedding(tokens),
            states,
            lambda index, x: self.layers[index](x, self.cos[:length], self.sin[:length]),
        )
        return self.head(states[-1]), states
