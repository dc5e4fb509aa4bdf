"""The one loop by which everything here learns that learns step by step.

    step, step, .. look, step, step, .. look, ..      to the last step, or until the selection has seen enough

A *step* is what the caller makes of it: an update of the weights, several on one batch, or a pass over all
data. A *look* measures the model on text that it does not learn from. Its rows are a learning curve's next
points, and what it measured tells the *selection* which weights to keep and whether to go on. The loop owns
the order of these, the curve, the progress bar and the snapshots; what a step computes and draws is the
caller's, down to the optimiser.

Two kinds of fit go without it: what has a closed form (calibrators, translators by least squares), and the
search for contexts in ``systems.context_vectors.training``, a fixed-point iteration that ends by its own
state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from offramp.machine.watch import NOBODY, Watch
from offramp.training.snapshots import Snapshots

Row = dict[str, Any]
"""A point of a learning curve, by column."""

Measured = TypeVar("Measured")
"""What a look hands to the selection: mostly the loss that is minimised."""


@dataclass
class Progress:
    """What changes in the course of a training, besides the weights and the optimiser.

    These are plain values: they go into every snapshot, and an interrupted training goes on from them.
    """

    step: int = 0
    """How many steps were made."""
    best_loss: float = math.inf
    """The lowest loss that a look has found."""
    best_step: int = 0
    """The step after which it was found."""
    best_look: int = 0
    """Place of the best look in the order of looks, counted from 1; 0 before there is one."""
    looks: int = 0
    """How many looks there were."""
    misses: int = 0
    """Looks in a row without a better one."""
    curve: list[Row] = field(default_factory=list)

    def append(self, rows: list[Row]) -> None:
        """Add the points of a look to the learning curve: the one place where a curve grows."""
        self.curve += rows


class Selection(Generic[Measured]):
    """Which weights a training leaves behind, and whether it goes on.

    This one keeps the last weights and never stops early.
    """

    def begin(self, progress: Progress) -> None:
        """Take in the weights that the training starts with; not called where it is resumed."""

    def judge(self, progress: Progress, measured: Measured) -> None:
        """Take in what a look has measured at ``progress.step``."""

    def ended(self, progress: Progress) -> bool:
        """Whether the looks so far are enough."""
        return False

    def finish(self, progress: Progress) -> None:
        """Put the weights in place that the training leaves behind."""

    def returns_to(self, progress: Progress) -> str | None:
        """The name of the weights on disk that a snapshot taken now depends on, if any."""
        return None


class Best(Selection[float]):
    """The weights at the lowest loss, held in memory.

    The training ends after ``patience`` looks in a row that brought no lower loss; with None it never stops
    early.
    """

    def __init__(self, model: nn.Module, patience: int | None = None):
        self.model, self.patience = model, patience
        self.weights: dict[str, Tensor] = {}
        """The best ones. A caller that takes snapshots saves them there too and puts them back to resume."""

    def keep(self, progress: Progress) -> None:
        """Take the weights as they are for the best ones."""
        self.weights = {name: weight.detach().clone() for name, weight in self.model.state_dict().items()}

    def begin(self, progress: Progress) -> None:
        self.keep(progress)

    def judge(self, progress: Progress, measured: float) -> None:
        if measured < progress.best_loss:
            progress.best_loss, progress.best_step = measured, progress.step
            progress.best_look, progress.misses = progress.looks, 0
            self.keep(progress)
        else:
            progress.misses += 1

    def ended(self, progress: Progress) -> bool:
        return self.patience is not None and progress.misses >= self.patience

    def finish(self, progress: Progress) -> None:
        self.model.load_state_dict(self.weights)


class BestOfEach(Selection[list[float]]):
    """The best weights of each of several models that are trained together as one batch of weights.

    Each ends by its own losses. Its weights go on changing until all have ended, but are not looked at any
    more.
    """

    def __init__(self, weights: dict[str, Tensor], patience: int | None = None, restore_best: bool = True):
        """``weights`` have the S models as their first dimension. Without ``restore_best`` a model ends with
        the weights that it had at its end."""
        self.weights, self.patience, self.restore_best = weights, patience, restore_best
        self.best, self.last = self._copies(), self._copies()
        models = len(next(iter(weights.values())))
        self.curves: list[list[float]] = [[] for _ in range(models)]
        """The losses of each model until its end."""
        self.lowest, self.best_look = [math.inf] * models, [0] * models
        """Of each model: its lowest loss, and the look that found it, counted from 1."""
        self.steps = [0] * models
        """Steps of each model until its end."""
        self.running = set(range(models))

    def judge(self, progress: Progress, measured: list[float]) -> None:
        for model in sorted(self.running):
            self.curves[model].append(measured[model])
            self.steps[model] = progress.step
            if measured[model] < self.lowest[model]:
                self.lowest[model], self.best_look[model] = measured[model], progress.looks
                self._copy(model, self.best)
            if progress.looks - self.best_look[model] == self.patience:
                self._end(model)

    def ended(self, progress: Progress) -> bool:
        return not self.running

    def finish(self, progress: Progress) -> None:
        for model in tuple(self.running):
            self._end(model)
        with torch.no_grad():
            for name, weight in (self.best if self.restore_best else self.last).items():
                self.weights[name].copy_(weight)

    def _end(self, model: int) -> None:
        self.running.remove(model)
        if not self.restore_best:
            self._copy(model, self.last)

    def _copies(self) -> dict[str, Tensor]:
        return {name: weight.detach().clone() for name, weight in self.weights.items()}

    def _copy(self, model: int, to: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, weight in self.weights.items():
                to[name][model] = weight[model]


@dataclass(frozen=True)
class Bar:
    """A progress bar on the terminal."""

    name: str
    unit: str = "step"
    disable: bool | None = None
    """None: no bar where there is no terminal."""
    shows: Callable[[Progress], dict[str, str]] = lambda progress: {}
    """What stands behind the bar after a look, by name."""


NO_BAR = Bar("", disable=True)


def every(steps: int, total: int) -> frozenset[int]:
    """Looks after every so many steps, and after the last of ``total``."""
    return frozenset((*range(steps, total, steps), total))


@dataclass(kw_only=True)
class Training(Generic[Measured]):
    """One training."""

    step: Callable[[int], None]
    """Makes the step with the given number, from 0."""
    look: Callable[[int], tuple[list[Row], Measured]]
    """Measures the model after so many steps: points of the learning curve, and what selection judges by."""
    steps: int
    """At most."""
    looks: Collection[int]
    """After how many steps there is a look."""
    selection: Selection[Measured]
    looks_first: bool = False
    """Whether there is a look before the first step: at a model that is good for something already."""
    snapshots: Snapshots | None = None
    """Where snapshots go, when they are due."""
    state: Callable[[], dict[str, Any]] = dict
    """What a snapshot holds besides the progress: weights, the optimiser's state, and all that goes on."""
    bar: Bar = NO_BAR
    watch: Watch = NOBODY
    """Who is told of every new point of the learning curve."""

    def run(self, progress: Progress | None = None) -> Progress:
        """Train to the end, and leave the weights that the selection chose in the model.

        To resume, the caller puts the snapshot's weights and optimiser state in place and gives its
        ``progress``.
        """
        progress = Progress() if progress is None else progress
        if progress.step == 0:
            if self.looks_first:
                self._look(progress)
            self.selection.begin(progress)
        with tqdm(
            total=self.steps,
            initial=progress.step,
            desc=self.bar.name,
            unit=self.bar.unit,
            disable=self.bar.disable,
        ) as bar:
            while progress.step < self.steps and not self.selection.ended(progress):
                self.step(progress.step)
                progress.step += 1
                bar.update()
                if progress.step in self.looks:
                    self._look(progress)
                    bar.set_postfix(self.bar.shows(progress))
                if self.snapshots is not None and self.snapshots.due():
                    state = {"progress": vars(progress), **self.state()}
                    self.snapshots.save(state, self.selection.returns_to(progress))
        self.selection.finish(progress)
        return progress

    def _look(self, progress: Progress) -> None:
        rows, measured = self.look(progress.step)
        progress.append(rows)
        self.watch.curve(rows)
        progress.looks += 1
        self.selection.judge(progress, measured)
