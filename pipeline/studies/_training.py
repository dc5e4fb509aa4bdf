"""One arm of a study of seed 001, trained as published or as corrected.

Learning rates are constant, so the beginning of a training is what a shorter one would have been: one run serves every
budget, of updates or of FLOPs. The best look within the budget, by the calibration split, is judged on the test split.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from offramp.training.ensemble import (
    AS_PUBLISHED,
    Ensemble,
    Fitted,
    Optimisation,
    Watch,
    Weights,
    batch_flops,
    fit,
    mean_nll,
)
from offramp.training.objectives import Objective
from pipeline.studies._characters import Characters

Build = Callable[[int], nn.Module]


@dataclass
class PublishedRun:
    """The seed's protocol: epochs until none of the last ``patience`` was better, judged by the split that chose the best."""

    ensemble: Ensemble
    """With the weights of the best epoch, or of the last where the seed went on from there."""
    fitted: Fitted

    def values(self, arm: str) -> dict[str, float]:
        """Best perplexity and its epoch."""
        return {f"ppl.{arm}": self.fitted.best_ppl, f"epoch.{arm}": self.fitted.best_look}


def train_published(build: Build, objective: Objective, data: Characters, epochs: int, patience: int | None, seed: int,
                    how: Optimisation = AS_PUBLISHED, restore_best: bool = True, watch: Watch | None = None) -> PublishedRun:
    """Train one model on data with the splits train and validation."""
    ensemble = Ensemble(build, [seed])
    (fitted,) = fit(ensemble, data.batches([seed]), objective, on_split(objective, data, "validation"), looks=epochs,
                    batches_per_look=data.batches_per_epoch, patience=patience, how=how, restore_best=restore_best,
                    watch=watch)
    return PublishedRun(ensemble, fitted)


def on_split(objective: Objective, data: Characters, split: str) -> Callable[[Ensemble], Tensor]:
    """Mean NLL (S,) of a split, as a look of ``fit``."""
    return lambda ensemble: mean_nll(ensemble, objective, *data.windows(split))


@dataclass
class CorrectedRun:
    """All seeds of one arm, with what they were at every look."""

    ensemble: Ensemble
    objective: Objective
    data: Characters
    batches_per_look: int
    flops_per_batch: int
    """Of one member's matrix products in training."""
    calibration: list[list[float]] = field(default_factory=list)
    """Mean NLL in nats by look and seed; infinite where nobody looked."""
    weights: list[Weights] = field(default_factory=list)
    """Of every look; empty where nobody looked."""
    _tested: dict[tuple[int, ...], list[float]] = field(default_factory=dict, repr=False)
    """By the looks chosen: several budgets often choose the same."""

    def looks_within(self, *, updates: int | None = None, flops: float | None = None) -> int:
        """How many looks fit in a budget of updates or of training FLOPs."""
        updates_each = self.batches_per_look * self.objective.segments
        found = updates // updates_each if updates is not None else int(flops // (self.batches_per_look * self.flops_per_batch))
        return max(1, min(len(self.calibration), found))

    def choose(self, looks: int) -> list[int]:
        """Leave every member with the weights of its best among the first ``looks``; the places of those looks."""
        nll = torch.tensor(self.calibration[:looks])
        chosen = nll.argmin(dim=0).tolist()
        self.ensemble.restore({name: torch.stack([self.weights[look][name][member] for member, look in enumerate(chosen)])
                               for name in self.ensemble.weights})
        return chosen

    def test_nll(self, looks: int) -> list[float]:
        """Mean NLL in nats on the test split by seed, each at its best among the first ``looks``."""
        chosen = tuple(self.choose(looks))
        if chosen not in self._tested:
            self._tested[chosen] = on_split(self.objective, self.data, "test")(self.ensemble).tolist()
        return self._tested[chosen]

    def curves(self) -> list[dict[float, float]]:
        """Calibration perplexity by update, for every seed."""
        step = self.batches_per_look * self.objective.segments
        return [{float(step * (look + 1)): math.exp(min(row[member], 100.0)) for look, row in enumerate(self.calibration)
                 if self.weights[look]}
                for member in range(len(self.ensemble))]


def train_corrected(build: Build, objective: Objective, data: Characters, updates: int, looks: int, seeds: Sequence[int],
                    how: Optimisation = AS_PUBLISHED, watch: Watch | None = None,
                    only: Collection[int] | None = None) -> CorrectedRun:
    """Train all seeds on data with the splits train, calibration and test; ``updates`` and ``looks`` are equal for all arms.

    ``only`` are the looks, counted from 1, that are taken; None is all of them.
    """
    ensemble = Ensemble(build, seeds)
    tokens, targets = next(data.batches(seeds[:1]))
    run = CorrectedRun(ensemble, objective, data, max(1, updates // (looks * objective.segments)),
                       batch_flops(ensemble, objective, tokens[0], targets[0]))
    calibration = on_split(objective, data, "calibration")

    def look(ensemble: Ensemble) -> Tensor:
        taken = only is None or len(run.calibration) + 1 in only
        nll = calibration(ensemble) if taken else torch.full((len(seeds),), math.inf)
        run.calibration.append(nll.tolist())
        run.weights.append(ensemble.snapshot() if taken else {})
        return nll

    fit(ensemble, data.batches(seeds), objective, look, looks=looks, batches_per_look=run.batches_per_look, how=how,
        watch=watch)
    return run


def by_seed(values: dict[str, Sequence[float]]) -> list[dict[str, Any]]:
    """Lists over seeds by key, as one dict per seed: what ``write_results`` takes."""
    return [dict(zip(values, row)) for row in zip(*values.values())]
