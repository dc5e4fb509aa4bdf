"""Lagged caches: features trained without targets and a head on them, or training by the task's own loss.

Shapes: S random seeds, N windows, T positions, B windows of a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from offramp.systems.ensemble import AS_PUBLISHED, Ensemble, batch_flops, mean_nll
from offramp.systems.lagged.model import LaggedConfig, LaggedLM, SampleCache
from offramp.systems.lagged.training import HeadFit, LaggedBatch, collect, fit_head, lagged_updates, settled
from offramp.systems.objectives import Carried, Objective, cross_entropy, from_logits
from offramp.training.loop import Selection, Training
from studies.common.characters import BATCH_SIZE, WINDOW, Characters
from studies.common.settings import Settings
from studies.common.training import CorrectedRun, Limits


def batches(data: Characters, seeds: Sequence[int], by_place: bool) -> Iterator[LaggedBatch]:
    """Shuffled batches of the training split without end, every random seed in an order of its own.

    ``by_place``: the cache is kept by place in the epoch, the published mistake: batches are shuffled, so
    that a window reads another one's.
    """
    tokens, targets = data.windows("train")
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    places = torch.arange(len(tokens)).expand(len(seeds), -1)
    while True:
        order = torch.stack([torch.randperm(len(tokens), generator=generator) for generator in generators])
        for windows, place in zip(order.split(BATCH_SIZE, dim=1), places.split(BATCH_SIZE, dim=1)):
            yield LaggedBatch(tokens[windows], targets[windows], place if by_place else windows)


def objective(passes: int, loss: Literal["oacd", "task"] = "task") -> Objective:
    """Logits after ``passes`` passes from an empty cache; the ``loss`` of each pass as in ``lagged_updates``,
    to count its FLOPs."""

    def of_pass(
        model: nn.Module, tokens: Tensor, targets: Tensor, carried: Carried
    ) -> tuple[Tensor, Carried]:
        empty = torch.zeros(model.config.layers, *tokens.shape, model.config.width)
        step, cached = carried or (torch.tensor(0), empty)
        logits, states = model(tokens, cached, int(step))
        value = cross_entropy(logits, targets) if loss == "task" else model.features_loss(states, int(step))
        return value, (step + 1, states)

    return replace(
        from_logits(lambda model, tokens: settled(model, tokens, passes)[0]), loss=of_pass, segments=passes
    )


class HeadTraining(Settings):
    """Of phase 2, a linear head on frozen features."""

    epochs: int
    learning_rate: float


class Lagged:
    """Models of one arm, their cache and their batches."""

    def __init__(
        self, data: Characters, layers: int, seeds: Sequence[int], passes: int, by_place: bool = False
    ):
        config = LaggedConfig(data.vocab_size, WINDOW, layers=layers)
        self.data, self.passes = data, passes
        self.ensemble = Ensemble(lambda seed: LaggedLM(config), seeds)
        self.batches = batches(data, seeds, by_place)
        self.cache = SampleCache(
            len(seeds), len(data.windows("train")[0]), config, torch.Generator().manual_seed(seeds[0])
        )

    def train(
        self,
        loss: Literal["oacd", "task"],
        count: int,
        looks: Sequence[int] = (),
        look: Callable[[int], object] = lambda batches: None,
    ) -> None:
        """Phase 1 on ``count`` batches; ``look`` is called with their number so far after each of ``looks``
        batches."""
        Training(
            step=lagged_updates(
                self.ensemble, self.cache, self.batches, loss, passes=self.passes, how=AS_PUBLISHED
            ),
            look=lambda batches: ([], look(batches)),
            steps=count,
            looks=looks,
            selection=Selection(),
        ).run()

    def train_task(self, looks: list[int], select: str = "calibration") -> CorrectedRun:
        """Phase 1 by the task's loss, looked at on the split ``select`` after each of so many batches."""
        run = CorrectedRun(self.ensemble, objective(self.passes), self.data, looks)
        self.train("task", looks[-1], looks, lambda batches: run.look(self.nll(select)))
        return run

    def limits(self, loss: Literal["oacd", "task"], updates: int, flops: float) -> Limits:
        """Of phase 1: batches of so many updates, one per pass, and those that ``flops`` pay for."""
        phase_1 = objective(self.passes, loss)
        batch = (part[:BATCH_SIZE] for part in self.data.windows("train"))
        return Limits.of(updates, flops, phase_1, batch_flops(self.ensemble, phase_1, *batch))

    def phase_2_flops(self, epochs: int) -> float:
        """FLOPs of one model: features of the training windows once; a product forward and one backward per
        epoch of the head."""
        tokens, _ = self.data.windows("train")
        with torch.no_grad(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            settled(self.ensemble.member(0), tokens[:BATCH_SIZE], self.passes)
        head = self.ensemble.weights["head.weight"][0].numel()
        return counter.get_total_flops() * len(tokens) / BATCH_SIZE + 4 * head * tokens.numel() * epochs

    def nll(self, split: str) -> Tensor:
        """Mean NLL (S,) in nats with the models' own heads."""
        return mean_nll(self.ensemble, objective(self.passes), *self.data.windows(split))

    def features(self, split: str) -> tuple[Tensor, Tensor]:
        """Frozen features (S, N T, n D) and targets (N T,) of a split."""
        tokens, targets = self.data.windows(split)
        return collect(self.ensemble, tokens, self.passes), targets.flatten()

    def fit_head(self, select: str, how: HeadTraining) -> HeadFit:
        """Phase 2, the best epoch chosen on the split ``select``."""
        return fit_head(
            self.ensemble.weights["head.weight"].detach(),
            *self.features("train"),
            self.features(select),
            epochs=how.epochs,
            batch=BATCH_SIZE * WINDOW,
            learning_rate=how.learning_rate,
        )
