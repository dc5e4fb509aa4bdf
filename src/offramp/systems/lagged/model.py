"""Lagged cache training: a recurrence over tokens, trained in parallel from the states of an earlier pass.

The recurrence h_t = f(x_1..x_t, h_{t-1}) is sequential. Lagged caches run all positions at once by feeding,
at pass k, the states cached at pass k - 1, shifted by one position (zero at t = 0), and overwrite the cache
with the new, detached states:

    one layer     L <- Layer_L( e + shift(L') )
    two layers    L <- Layer_L( e + shift(L') + shift(H') ),
                  and every second pass  H <- Layer_H( L + shift(H') )

with a prime for the cached states. After T passes the states of T positions are those of the recurrence
itself. The logits are head(L), or head([L, H]) of both.

Features may be trained without targets by origin-anchored centroid dispersion (``oacd``), which spreads
states and keeps their mean near zero; a head is then fitted to the frozen features. The code of the
comparison in the report ``character-systems`` is lost; this follows its description.

Shapes: B sequences, T positions, n layers, D width, V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from offramp.errors import UserError
from offramp.nn.layers import TransformerLayer, require_heads, rotary_table
from offramp.systems.initial_weights import EMBEDDING_STD, truncated_normal

CENTRE_WEIGHT = 0.1
"""Weight, in ``oacd``, of the squared distance of the mean from zero."""


def oacd(states: Tensor) -> Tensor:
    """Origin-anchored centroid dispersion of states (..., D), a scalar: - ||C - m||_F / n + 0.1 ||m||^2.

    C are the n states as rows and m their mean; the Frobenius norm is not squared.
    """
    rows = states.flatten(0, -2)
    mean = rows.mean(dim=0)
    return CENTRE_WEIGHT * mean.square().sum() - torch.linalg.vector_norm(rows - mean) / len(rows)


@dataclass(frozen=True)
class LaggedConfig:
    """Sizes of a model.

    Raises UserError for a number of layers other than 1 and 2, and for heads that do not divide the width.
    """

    vocab_size: int
    window: int = 64
    width: int = 64
    heads: int = 4
    ffn_width: int = 256
    layers: int = 1
    period: int = 2
    """Passes between two updates of the second layer."""

    def __post_init__(self) -> None:
        if self.layers not in (1, 2):
            raise UserError(
                f"layers = {self.layers}: lagged caches are defined for 1 layer and for 2; use one of these"
            )
        require_heads(self.width, self.heads)
        if self.period < 1:
            raise UserError(f"period = {self.period} counts passes; use 1 or more")


class LaggedLM(nn.Module):
    """Post-norm layers whose inputs hold cached states, and a head without bias on all of their states."""

    cos: Tensor
    sin: Tensor
    """Rotary tables (window, R / 2), R the dimensions of a head."""

    def __init__(self, config: LaggedConfig):
        super().__init__()
        self.config = config
        width = config.width
        self.embedding = nn.Embedding(config.vocab_size, width)
        self.layers = nn.ModuleList(
            TransformerLayer(width, config.heads, config.ffn_width, "post") for _ in range(config.layers)
        )
        self.head = nn.Linear(config.layers * width, config.vocab_size, bias=False)
        truncated_normal(self, 1 / math.sqrt(width))
        cos, sin = rotary_table(config.window, width // config.heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def updates_high(self, step: int) -> bool:
        """Whether the second layer is updated in pass ``step`` (from 0)."""
        return self.config.layers == 2 and (step + 1) % self.config.period == 0

    def forward(self, tokens: Tensor, cache: Tensor, step: int = 0) -> tuple[Tensor, Tensor]:
        """Pass ``step``: logits (B, T, V) of tokens (B, T), and states (n, B, T, D) for the cache."""
        turns = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]
        lagged = _shift(cache.detach())
        states = [self.layers[0](self.embedding(tokens) + lagged.sum(dim=0), *turns)]
        if self.config.layers == 2:
            states.append(
                self.layers[1](states[0] + lagged[1], *turns)
                if self.updates_high(step)
                else cache[1].detach()
            )
        return self.head(torch.cat(states, dim=-1)), torch.stack(states)

    def features_loss(self, states: Tensor, step: int) -> Tensor:
        """OACD of the states (n, B, T, D) that pass ``step`` has made."""
        loss = oacd(states[0])
        return loss + oacd(states[1]) if self.updates_high(step) else loss


def _shift(cache: Tensor) -> Tensor:
    """States (n, B, T, D) moved to the next position, zero at the first."""
    return torch.cat((torch.zeros_like(cache[..., :1, :]), cache[..., :-1, :]), dim=-2)


class SampleCache:
    """Cached states of every training window and of S models, kept by the window's number.

    The report kept them by the batch's place in the epoch while batches were shuffled, so that a window met
    the states of others: that mistake is what one gets by passing places instead of numbers.
    """

    def __init__(self, models: int, windows: int, config: LaggedConfig, generator: torch.Generator):
        """States start as 0.02 normal(0, 1)."""
        shape = models, windows, config.layers, config.window, config.width
        self.states = EMBEDDING_STD * torch.randn(shape, generator=generator)
        self._models = torch.arange(models).unsqueeze(1)

    def read(self, windows: Tensor) -> Tensor:
        """States (S, n, B, T, D) of each model's windows (S, B)."""
        return self.states[self._models, windows].transpose(1, 2)

    def write(self, windows: Tensor, states: Tensor) -> None:
        """Replace the states of each model's windows (S, B) by ``states`` (S, n, B, T, D)."""
        self.states[self._models, windows] = states.detach().transpose(1, 2)
