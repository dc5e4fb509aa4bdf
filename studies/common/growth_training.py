"""Training of models that grow stage by stage, for experiments 5 to 7 of the report character-systems.

Every arm of one text goes through the same batches in the same order, random seed by random seed, wherever
its stages begin; arms that start alike share their first stage. After an arm's planned updates its last stage
goes on until it has cost as many FLOPs as planned for the arm that grows (``Task.budget``). What is reported
is the best look of a stage by the calibration text, read on the test text, for every random seed: "equal
updates" of the looks within the planned updates, "equal FLOPs" of those within that cost; there is a look at
the very end of both.

Shapes: S random seeds.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from offramp.models.native import BlockwiseLM, ModelConfig
from offramp.systems.ensemble import AS_PUBLISHED, Ensemble, Weights, batch_flops, fit, mean_nll
from offramp.systems.growth import Schedule, Stage, begin
from offramp.systems.initial_weights import truncated_normal
from offramp.systems.objectives import Objective, named
from studies.common.characters import BATCH_SIZE, WINDOW, Characters
from studies.common.settings import Settings
from studies.common.training import of_looks
from studies.common.workers import run_chains


class ModelSize(Settings):
    """Section ``growth`` of the shared settings: the layers of the models that grow."""

    width: int
    heads: int
    ffn_width: int
    linear_std: float
    """Of the truncated normal distribution that every matrix starts from."""


@dataclass(frozen=True)
class Arm:
    """A schedule and what it minimises."""

    schedule: Schedule
    objective: str = "final"
    """final: the loss of the last exit; sum: of all exits (LPT)."""

    @property
    def start(self) -> tuple[Any, ...]:
        """What its first stage depends on; a model of one layer has one exit, whatever the objective."""
        schedule = self.schedule
        return (
            schedule.start,
            schedule.embedding,
            self.objective if schedule.start > 1 else "final",
            schedule.start == schedule.target,
        )


class Plan(Settings):
    """How long the stages of all arms are; counted in looks at the calibration text."""

    start: int
    """Looks of the first stage."""
    stage: int
    """Looks of every later stage."""
    whole: int
    """Looks of an arm that has one stage only, trained from scratch."""
    batches_per_look: int
    patience: int | None = None
    """Looks without a better one after which a stage ends; None: stages are as long as planned."""

    def looks(self, schedule: Schedule) -> list[int]:
        """Planned looks of each stage."""
        stages = schedule.stages()
        return [self.whole] if len(stages) == 1 else [self.start, *[self.stage] * (len(stages) - 1)]


@dataclass
class Best:
    """The best look of every random seed by the calibration text, read on the test text."""

    nll: list[float]
    updates: list[int]


@dataclass
class StageLooks:
    """One stage of one arm."""

    name: str
    parameters: int
    """That learn, of one model."""
    updates_before: int
    """Of the stages before."""
    flops_before: float
    """Of one model in training, in the stages before."""
    flops_per_batch: int
    at_once: list[float] | None
    """NLL of the test text before the first update; of the last of several stages alone."""
    looks: list[int]
    """Batches of this stage before each look that there was."""
    calibration: list[list[float]]
    """Mean NLL in nats by look and random seed."""
    planned: Best
    equal_flops: Best | None
    """Of the last stage; None where the budget does not pay for a batch of it, or there is no budget."""

    @property
    def updates(self) -> list[int]:
        """Over all stages before each look."""
        return [self.updates_before + batches for batches in self.looks]

    @property
    def updates_after(self) -> int:
        return self.updates[-1]

    @property
    def flops_after(self) -> float:
        return self.flops_before + self.looks[-1] * self.flops_per_batch


@dataclass
class ArmLooks:
    """All stages of an arm; the fine-tuning stage, if any, is apart."""

    stages: list[StageLooks]
    fine_tuned: StageLooks | None = None


def build(depth: int, vocab_size: int, size: ModelSize) -> BlockwiseLM:
    """The report's model of ``depth`` layers: at its width of 64, with 128 V + 65,664 L parameters."""
    model = BlockwiseLM(
        ModelConfig(
            vocab_size, WINDOW, size.width, size.heads, size.ffn_width, (1,) * depth, norm="post", tied=False
        )
    )
    initialise(model, size.linear_std)
    return model


def initialise(model: nn.Module, std: float) -> None:
    """Every matrix ~ truncated normal(0, ``std``)."""
    truncated_normal(model, std)
    for head in model.heads:
        nn.init.trunc_normal_(head, std=std)


@dataclass(frozen=True)
class Task:
    """Arms on one text."""

    arms: Mapping[str, Arm]
    text: Characters
    plan: Plan
    size: ModelSize
    seeds: tuple[int, ...]
    budget: float | None = None
    """Equal FLOPs: of one model, in training."""

    def ensemble(self, depth: int) -> Ensemble:
        """A model of ``depth`` layers for every random seed, as drawn."""
        return Ensemble(lambda seed: build(depth, self.text.vocab_size, self.size), self.seeds)


def train_all(tasks: Mapping[str, Task], processes: int) -> dict[str, dict[str, ArmLooks]]:
    """All arms of all tasks, by task and name. What several arms begin with alike is trained once."""
    arms = {(name, key): (arm, task) for name, task in tasks.items() for key, arm in task.arms.items()}
    arms = dict(sorted(arms.items(), key=lambda item: -_planned(*item[1])))
    # what others wait for comes before what is trained from scratch
    starts = {(name, arm.start): (arm, task) for (name, _), (arm, task) in arms.items()}
    starts = dict(sorted(starts.items(), key=lambda item: len(item[1][0].schedule.stages()) == 1))
    chains = {(name, key): ((name, arm.start), (arm, task)) for (name, key), (arm, task) in arms.items()}
    grown = run_chains(_first_stage, starts, _later_stages, chains, processes)
    return {name: {key: grown[name, key] for key in task.arms} for name, task in tasks.items()}


@dataclass
class Started:
    """A first stage: its looks, and the weights that the next one may go on from."""

    looks: StageLooks
    best: Weights
    last: Weights


def _first_stage(arm: Arm, task: Task) -> Started:
    schedule = arm.schedule
    ensemble = task.ensemble(schedule.start)
    stages = schedule.stages()
    looks, last = _train(
        arm, stages[0], ensemble, task, task.plan.looks(schedule)[0], closing=len(stages) == 1
    )
    return Started(looks, ensemble.snapshot(), last)


def _later_stages(started: Started, arm: Arm, task: Task) -> ArmLooks:
    schedule = arm.schedule
    ensemble = task.ensemble(schedule.start)
    ensemble.restore(started.best if schedule.goes_on_from == "best" else started.last)
    stages, counts = schedule.stages(), task.plan.looks(schedule)
    grown = len(stages) - (schedule.fine_tune is not None)
    results = [started.looks]
    for number in range(1, len(stages)):
        looks, last = _train(
            arm, stages[number], ensemble, task, counts[number], results[-1], number == grown - 1
        )
        if schedule.goes_on_from == "last":
            ensemble.restore(last)
        results.append(looks)
    return ArmLooks(results[:grown], results[grown] if grown < len(results) else None)


def _train(
    arm: Arm,
    stage: Stage,
    ensemble: Ensemble,
    task: Task,
    looks: int,
    before: StageLooks | None = None,
    closing: bool = False,
) -> tuple[StageLooks, Weights]:
    """One stage of ``looks`` looks; the ``closing`` one goes on while its budget of FLOPs allows, with a look
    at the very end.

    Leaves the best weights in the ensemble and returns the last ones.
    """
    text, plan, objective = task.text, task.plan, named(arm.objective, stage.depth)
    draw = partial(initialise, std=task.size.linear_std)
    how = begin(stage, ensemble, arm.schedule, draw, AS_PUBLISHED)
    per_batch = stage_flops(stage, arm.objective, text.vocab_size, task.size)
    flops, updates = (before.flops_after, before.updates_after) if before else (0.0, 0)
    planned = looks * plan.batches_per_look
    paid = max(0, int((task.budget - flops) // per_batch)) if closing and task.budget is not None else 0
    due = sorted({*range(plan.batches_per_look, max(planned, paid) + 1, plan.batches_per_look), paid} - {0})
    at_once = _test(ensemble, objective, task) if closing and before else None
    calibration, weights = [], []

    def look(ensemble: Ensemble) -> Tensor:
        nll = mean_nll(ensemble, objective, *text.windows(_split(text, "calibration")))
        calibration.append(nll.tolist())
        weights.append(ensemble.snapshot())
        return nll

    batches = islice(text.batches(task.seeds), updates, None)
    fit(ensemble, batches, objective, look, looks=due, patience=plan.patience, how=how)
    best, taken = ensemble.snapshot(), due[: len(calibration)]

    @cache
    def read(chosen: tuple[int, ...]) -> Best:
        ensemble.restore(of_looks(weights, chosen))
        return Best(_test(ensemble, objective, task), [updates + taken[place] for place in chosen])

    def best_within(batches: int) -> Best:
        return read(tuple(torch.tensor(calibration[: bisect_right(taken, batches)]).argmin(dim=0).tolist()))

    result = StageLooks(
        name=stage.name,
        parameters=sum(weight[0].numel() for weight in ensemble.trainable().values()),
        updates_before=updates,
        flops_before=flops,
        flops_per_batch=per_batch,
        at_once=at_once,
        looks=taken,
        calibration=calibration,
        planned=best_within(planned),
        equal_flops=best_within(paid) if paid else None,
    )
    ensemble.restore(best)
    return result, weights[-1]


def _split(text: Characters, split: str) -> str:
    """The pangram's one validation sentence stands for calibration and test."""
    return split if split in text.splits else "validation"


def _test(ensemble: Ensemble, objective: Objective, task: Task) -> list[float]:
    return mean_nll(ensemble, objective, *task.text.windows(_split(task.text, "test"))).tolist()


def planned_flops(arm: Arm, text: Characters, plan: Plan, size: ModelSize) -> float:
    """FLOPs of training one model as planned, without fine-tuning."""
    stages = zip(arm.schedule.stages(), plan.looks(arm.schedule))
    return sum(
        looks * plan.batches_per_look * stage_flops(stage, arm.objective, text.vocab_size, size)
        for stage, looks in stages
        if stage.name != "fine-tune"
    )


def _planned(arm: Arm, task: Task) -> float:
    return planned_flops(arm, task.text, task.plan, task.size)


def stage_flops(stage: Stage, objective: str, vocab_size: int, size: ModelSize) -> int:
    """FLOPs of training one model on one batch."""
    costs_alike = replace(stage, name="", adds=False, rate=1.0, rate_decay=1.0)
    return _batch_flops(costs_alike, objective, vocab_size, size)


@cache
def _batch_flops(stage: Stage, objective: str, vocab_size: int, size: ModelSize) -> int:
    ensemble = Ensemble(lambda seed: build(stage.depth, vocab_size, size), [0])
    learns = stage.rates(ensemble.weights)
    ensemble.freeze(lambda name: name not in learns)
    tokens = torch.zeros(BATCH_SIZE, WINDOW, dtype=torch.int64)
    return batch_flops(ensemble, named(objective, stage.depth), tokens, tokens)
