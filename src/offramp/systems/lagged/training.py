"""Training by lagged caches: several passes over each batch, then a head on frozen features.

Phase 1 makes ``passes`` updates per batch, each from the states that the pass before cached for these
windows, by OACD (without targets) or by the task's own loss. Phase 2, after OACD, collects the states of all
windows and fits the head alone.

Shapes: S models, B windows of a batch, N windows, T positions, n layers, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from offramp.errors import UserError
from offramp.systems.ensemble import Ensemble, Optimisation, clip_each, optimiser_of
from offramp.systems.lagged.model import LaggedLM, SampleCache
from offramp.systems.objectives import cross_entropy
from offramp.training.loop import BestOfEach, Row, Training

LOSSES = ("oacd", "task")
TOGETHER = 64
"""Windows per model in a pass that only collects states."""


@dataclass(frozen=True)
class LaggedBatch:
    """Windows of each model by number, their tokens and targets, and where the cache holds their states."""

    tokens: Tensor
    """(S, B, T)"""
    targets: Tensor
    """(S, B, T)"""
    slots: Tensor
    """(S, B): the windows' numbers, or their places in the epoch where the report's mistake is wanted."""


def lagged_updates(
    ensemble: Ensemble,
    cache: SampleCache,
    batches: Iterator[LaggedBatch],
    loss: Literal["oacd", "task"],
    *,
    passes: int,
    how: Optimisation,
) -> Callable[[int], None]:
    """Phase 1 as a step for ``fit_members``: ``passes`` updates on the next of ``batches``, an iterator
    without end.

    Raises UserError for an unknown loss.
    """
    if loss not in LOSSES:
        raise UserError(
            f"loss = {loss!r} is unknown to lagged cache training; use one of {', '.join(LOSSES)}"
        )
    optimiser = optimiser_of(ensemble, how)
    weights = list(ensemble.trainable().values())

    def step(number: int) -> None:
        batch = next(batches)
        for index in range(passes):

            def value(
                model: LaggedLM, tokens: Tensor, targets: Tensor, cached: Tensor, index: int = index
            ) -> tuple[Tensor, Tensor]:
                logits, states = model(tokens, cached, index)
                return (
                    cross_entropy(logits, targets) if loss == "task" else model.features_loss(states, index)
                ), states.detach()

            optimiser.zero_grad(set_to_none=True)
            losses, states = ensemble(value, batch.tokens, batch.targets, cache.read(batch.slots))
            losses.sum().backward()
            clip_each([weight.grad for weight in weights if weight.grad is not None], how.clip_norm)
            optimiser.step()
            cache.write(batch.slots, states)

    return step


def settled(model: LaggedLM, tokens: Tensor, passes: int) -> tuple[Tensor, Tensor]:
    """Logits (B, T, V) and states (n, B, T, D) of windows (B, T) after so many passes from an empty cache."""
    config = model.config
    cache = torch.zeros(config.layers, *tokens.shape, config.width)
    for step in range(passes):
        logits, cache = model(tokens, cache, step)
    return logits, cache


@torch.no_grad()
def collect(ensemble: Ensemble, tokens: Tensor, passes: int) -> Tensor:
    """Features (S, N T, n D) of windows (N, T), the same windows for every model."""

    def features(model: LaggedLM, part: Tensor) -> Tensor:
        return torch.cat(settled(model, part, passes)[1].unbind(0), dim=-1)

    parts = [ensemble(features, part.expand(len(ensemble), *part.shape)) for part in tokens.split(TOGETHER)]
    return torch.cat(parts, dim=1).flatten(1, 2)


@dataclass(frozen=True)
class HeadFit:
    """Phase 2 of S models."""

    weights: Tensor
    """(S, V, D) of the best epoch."""
    best_epoch: list[int]
    """From 1."""
    curve: list[list[float]]
    """Mean NLL in nats on the selection windows, per epoch and model."""


def fit_head(
    start: Tensor,
    features: Tensor,
    targets: Tensor,
    select: tuple[Tensor, Tensor],
    *,
    epochs: int,
    batch: int,
    learning_rate: float,
    seed: int = 0,
) -> HeadFit:
    """Fit heads (S, V, n D) from ``start`` to frozen features (S, M, n D) and targets (M,) of M tokens,
    ``batch`` at a time.

    The best epoch is chosen on ``select``, features and targets of other text. AdamW with weight decay 0.01,
    norms clipped to 1.
    """
    head = start.detach().clone().requires_grad_()
    optimiser = torch.optim.AdamW([head], lr=learning_rate, weight_decay=0.01, fused=True)
    generator = torch.Generator().manual_seed(seed)

    def epoch(number: int) -> None:
        for rows in torch.randperm(len(targets), generator=generator).split(batch):
            optimiser.zero_grad(set_to_none=True)
            head_nll(head, features[:, rows], targets[rows]).sum().backward()
            clip_each([cast(Tensor, head.grad)], 1.0)
            optimiser.step()

    def look(epochs_so_far: int) -> tuple[list[Row], list[float]]:
        with torch.no_grad():
            return [], head_nll(head, *select).tolist()

    selection = BestOfEach({"head": head})
    Training(step=epoch, look=look, steps=epochs, looks=range(1, epochs + 1), selection=selection).run()
    return HeadFit(head.detach(), selection.best_look, [list(nll) for nll in zip(*selection.curves)])


def head_nll(heads: Tensor, features: Tensor, targets: Tensor) -> Tensor:
    """Mean NLL (S,) in nats of heads (S, V, n D) on features (S, M, n D) and targets (M,)."""
    logits = torch.bmm(features, heads.transpose(1, 2))
    losses = F.cross_entropy(logits.flatten(0, 1), targets.repeat(len(heads)), reduction="none")
    return losses.unflatten(0, (len(heads), -1)).mean(dim=1)
