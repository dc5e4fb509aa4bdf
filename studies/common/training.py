"""One arm of a study of the report character-systems, trained as published or as corrected.

Learning rates are constant, so the beginning of a training is what a shorter one would have been: one run
serves both limits, of updates and of FLOPs, and there is a look at the very end of each. The best look within
a limit, by the calibration split, is judged on the test split.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from offramp.systems.ensemble import Ensemble, Fitted, Watch, Weights, fit, mean_nll
from offramp.systems.objectives import Objective
from studies.common.characters import Characters
from studies.common.settings import Settings

Build = Callable[[int], nn.Module]


@dataclass
class PublishedRun:
    """The report's protocol: epochs until none of the last ``patience`` was better, judged by the split that
    chose the best."""

    ensemble: Ensemble
    """With the weights of the best epoch."""
    fitted: Fitted

    def values(self, arm: str) -> dict[str, float]:
        """Best perplexity and its epoch."""
        return {f"ppl.{arm}": self.fitted.best_ppl, f"epoch.{arm}": self.fitted.best_look}


class PublishedTraining(Settings):
    """How long the report trains."""

    epochs: int
    """At most."""
    patience: int | None
    """Epochs without a better one after which training ends; None: it goes on to the last."""


def train_published(
    build: Build,
    objective: Objective,
    data: Characters,
    *,
    epochs: int,
    patience: int | None,
    seed: int,
    watch: Watch | None = None,
) -> PublishedRun:
    """Train one model on data with the splits train and validation."""
    ensemble = Ensemble(build, [seed])
    (fitted,) = fit(
        ensemble,
        data.batches([seed]),
        objective,
        on_split(objective, data, "validation"),
        looks=data.epochs(epochs),
        patience=patience,
        watch=watch,
    )
    return PublishedRun(ensemble, fitted)


def on_split(objective: Objective, data: Characters, split: str) -> Callable[[Ensemble], Tensor]:
    """Mean NLL (S,) of a split, as a look of ``fit``."""
    return lambda ensemble: mean_nll(ensemble, objective, *data.windows(split))


@dataclass(frozen=True)
class Limits:
    """Batches that an arm learns from, at least one: within equal updates, and within equal FLOPs of
    training."""

    updates: int
    flops: int

    @classmethod
    def of(cls, updates: int, flops: float, objective: Objective, flops_per_batch: int) -> Limits:
        """Whole batches of so many updates, and those that ``flops`` pay for."""
        return cls(max(1, updates // objective.segments), max(1, int(flops // flops_per_batch)))

    def looks(self, look_every: int, at_least: int = 0) -> list[int]:
        """Batches after which an arm is looked at that goes on to the later limit and to ``at_least``: all
        these, and between."""
        longest = max(self.updates, self.flops, at_least)
        return sorted({self.updates, self.flops, longest, *range(look_every, longest, look_every)})


@dataclass
class CorrectedRun:
    """All random seeds of one arm, with what their models were at every look."""

    ensemble: Ensemble
    objective: Objective
    data: Characters
    looks: list[int]
    """Batches after which there is one, rising."""
    calibration: list[list[float]] = field(default_factory=list)
    """Mean NLL in nats by look and seed."""
    weights: list[Weights] = field(default_factory=list)
    """Of every look."""
    _tested: dict[tuple[int, ...], list[float]] = field(default_factory=dict, repr=False)
    """By the looks chosen: both limits often choose the same."""

    def look(self, nll: Tensor) -> Tensor:
        """Keep what the members are now, and their ``nll`` (S,) of calibration text, which it returns."""
        self.calibration.append(nll.tolist())
        self.weights.append(self.ensemble.snapshot())
        return nll

    def choose(self, batches: int) -> list[int]:
        """Leave every member with the weights of its best look within so many batches; the batches before
        those looks."""
        nll = torch.tensor(self.calibration[: bisect_right(self.looks, batches)])
        chosen = nll.argmin(dim=0).tolist()
        self.ensemble.restore(of_looks(self.weights, chosen))
        return [self.looks[look] for look in chosen]

    def test_nll(self, batches: int) -> list[float]:
        """Mean NLL in nats on the test split by random seed, each at its best look within so many batches."""
        chosen = tuple(self.choose(batches))
        if chosen not in self._tested:
            self._tested[chosen] = self._test().tolist()
        return self._tested[chosen]

    def _test(self) -> Tensor:
        return on_split(self.objective, self.data, "test")(self.ensemble)

    @property
    def batches_per_pass(self) -> int:
        """Over the training text."""
        return self.data.batches_per_epoch

    def curves(self) -> list[dict[float, float]]:
        """Perplexity of the calibration text by update, for every random seed."""
        return [
            {
                float(self.objective.segments * batches): math.exp(min(row[member], 100.0))
                for batches, row in zip(self.looks, self.calibration)
            }
            for member in range(len(self.ensemble))
        ]


def of_looks(weights: Sequence[Weights], chosen: Sequence[int]) -> Weights:
    """The weights of an ensemble whose every member is as it was at a look of its own; ``weights`` are by
    look."""
    return {
        name: torch.stack([weights[look][name][member] for member, look in enumerate(chosen)])
        for name in weights[0]
    }


def train_corrected(
    build: Build,
    objective: Objective,
    data: Characters,
    limits: Limits,
    *,
    look_every: int,
    seeds: Sequence[int],
    watch: Watch | None = None,
    at_least: int = 0,
) -> CorrectedRun:
    """Train all random seeds on data with the splits train, calibration and test; ``look_every`` and
    ``at_least`` are batches."""
    run = CorrectedRun(Ensemble(build, seeds), objective, data, limits.looks(look_every, at_least))
    calibration = on_split(objective, data, "calibration")
    fit(
        run.ensemble,
        data.batches(seeds),
        objective,
        lambda ensemble: run.look(calibration(ensemble)),
        looks=run.looks,
        watch=watch,
    )
    return run


def by_seed(values: Mapping[str, Sequence[float]]) -> list[dict[str, float]]:
    """Lists over random seeds by key, as one dict per random seed: the rows of an ``Outcome``."""
    return [dict(zip(values, row)) for row in zip(*values.values())]
