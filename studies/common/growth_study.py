"""The studies of growth, experiments 5 to 7 of the report character-systems: values, tables and curves.

Published, on the pangram alone: as in the report, where the text was two repeated sentences and every stage
went on from overfitted weights. Corrected: real text, stages of equal numbers of updates that begin with the
best weights, the same number of updates in all for every arm and, apart from that, equal FLOPs; and the same
on the pangram, as a control of the text.

Keys, where POINT is an arm (``greedy``), one of its stages (``greedy_2``), what it is before the first update
of its last stage (``greedy_at_once``, a perplexity alone), or after fine-tuning (``greedy_fine_tuned``);
corrected ones begin with the size of the text, which is ``20k`` for the pangram:

    ppl.POINT  diff.POINT_minus_POINT   perplexity, and a difference in nats, at equal numbers of updates
    times|rise|gain.POINT_over_POINT    how many times the other's perplexity it is; the share by which it is
                                        above or below that
    flops.ppl.ARM  flops.diff....       perplexity and difference at equal FLOPs of training
    best_epoch.POINT  parameters.POINT  epochs of the stage until its best look; parameters that learn in it
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from studies.common.characters import Characters, Sizes, corrected_splits, published_1b
from studies.common.curves import panels_figure
from studies.common.growth_training import (
    Arm,
    ArmLooks,
    ModelSize,
    Plan,
    StageLooks,
    Task,
    planned_flops,
    train_all,
)
from studies.common.results import over_seeds
from studies.common.study import Job, Outcome
from studies.common.training import PublishedTraining, by_seed

PANGRAM = "pangram"
RATIOS: Mapping[str, Callable[[float], float]] = {
    "times": math.exp,
    "rise": math.expm1,
    "gain": lambda nats: -math.expm1(nats),
}
"""Ways in which the report compares two perplexities, of their difference in nats."""
Values = dict[str, list[float]]
"""By key, one number per random seed."""


@dataclass(frozen=True)
class Experiment:
    """What a study trains and compares."""

    arms: Mapping[str, Arm]
    """Corrected."""
    published_arms: Mapping[str, Arm]
    """As in the report, on the pangram."""
    fewer: Mapping[str, list[str]]
    """Names of the corrected arms where not all of them run: by size of the text, and ``pangram``."""
    reference: str
    """The growing arm whose cost is that of equal FLOPs."""
    differences: list[tuple[str, str]]
    """Pairs of points, the first minus the second."""
    drawn: list[str]
    """Arms in the plot."""
    ratios: list[tuple[str, str, str]] = field(default_factory=list)
    """One of RATIOS, and the two points."""

    @property
    def names(self) -> list[str]:
        """Arms of either protocol."""
        return list(dict.fromkeys([*self.arms, *self.published_arms]))

    def published(self, job: Job) -> Outcome:
        """The arms as the report grew them, on the pangram with one random seed."""
        data = published_1b(Sizes.of(job.shared["characters"]))
        how, size = PublishedTraining.of(job.settings["published"]), ModelSize.of(job.shared["growth"])
        plan = Plan(
            start=how.epochs,
            stage=how.epochs,
            whole=how.epochs,
            batches_per_look=data.batches_per_epoch,
            patience=how.patience,
        )
        arms = {name: arm for name, arm in self.published_arms.items() if name in job.arms}
        if not arms:
            return Outcome([])
        task = Task(arms, data, plan, size, job.seeds)
        results = train_all({"published": task}, job.processes)["published"]
        curves = self.curves({"as published: pangram, one run": results})
        return Outcome(by_seed(self.values(results, data)), {"growth.published": curves})

    def corrected(self, job: Job) -> Outcome:
        """The corrected arms on every size of the text that they are for, at equal updates and at equal
        FLOPs."""
        tasks = self.tasks(job)
        if not tasks:
            return Outcome([])
        results = train_all(tasks, job.processes)
        values = {name: self.values(results[name], task.text) for name, task in tasks.items()}
        keyed = {f"{name}.{key}": numbers for name, some in values.items() for key, numbers in some.items()}
        titles = {name: PANGRAM if job.text.corpus == PANGRAM else f"{name} characters" for name in tasks}
        outcome = Outcome(by_seed(keyed))
        outcome.figures["growth"] = self.curves(
            {f"corrected, {titles[name]}": results[name] for name in tasks}
        )
        if len(job.seeds) < 2:
            return outcome  # tables and sentences are of intervals
        for name in tasks:
            intervals = over_seeds(by_seed(values[name]))
            outcome.figures[f"arms.{name}"] = self.table(name, results[name], intervals)
            outcome.figures[f"differences.{name}"] = self.difference_table(name, intervals)
            outcome.sentences += self.sentences(name, intervals)
        return outcome

    def tasks(self, job: Job) -> dict[str, Task]:
        """What the corrected protocol trains, by size of the text; the pangram stands for 20,000
        characters."""
        sizes, model = Sizes.of(job.shared["characters"]), ModelSize.of(job.shared["growth"])
        if job.text.corpus == PANGRAM:
            texts = {"20k": (published_1b(sizes), PANGRAM)}
        else:
            texts = {
                name: (corrected_splits(job.text, name, sizes), name) for name in sizes.names(job.text.corpus)
            }
        tasks = {}
        for name, (data, kind) in texts.items():
            plan = Plan.of(job.settings["20k" if kind == "own" else kind])
            wanted = [arm for arm in job.arms if arm in self.fewer.get(kind, self.arms)]
            arms = {arm: self.arms[arm] for arm in self.arms if arm in wanted}
            budget = planned_flops(self.arms[self.reference], data, plan, model)
            if arms:
                tasks[name] = Task(arms, data, plan, model, job.seeds, budget)
        return tasks

    def values(self, results: Mapping[str, ArmLooks], text: Characters) -> Values:
        """All keys of one task."""
        equal_updates, equal_flops = points(results), points_at_equal_flops(results)
        out = {f"ppl.{name}": _ppl(nll) for name, nll in equal_updates.items()}
        out |= {f"flops.ppl.{name}": _ppl(nll) for name, nll in equal_flops.items()}
        for prefix, some in (("", equal_updates), ("flops.", equal_flops)):
            out |= {
                f"{prefix}diff.{one}_minus_{other}": [a - b for a, b in zip(some[one], some[other])]
                for one, other in self.differences
                if one in some and other in some
            }
        out |= {
            f"{kind}.{one}_over_{other}": [
                RATIOS[kind](min(a - b, 100.0)) for a, b in zip(equal_updates[one], equal_updates[other])
            ]
            for kind, one, other in self.ratios
            if one in equal_updates and other in equal_updates
        }
        for name, stage in _stages(results).items():
            epochs = [
                (updates - stage.updates_before) / text.batches_per_epoch for updates in stage.planned.updates
            ]
            out |= {
                f"best_epoch.{name}": epochs,
                f"parameters.{name}": [float(stage.parameters)] * len(epochs),
            }
        return out

    def curves(self, panels: Mapping[str, Mapping[str, ArmLooks]]) -> dict[str, Any]:
        """Perplexity of the calibration text by update of the drawn arms, to the later of their two
        limits."""
        drawn = {
            title: {arm: _curve(looks) for arm, looks in results.items() if arm in self.drawn}
            for title, results in panels.items()
        }
        note = (
            "perplexity on the text that selects, by update over all stages; bands: 95 % t intervals over "
            "seeds. A published stage ends once it stopped improving"
        )
        return panels_figure("Growth curves", drawn, "text", "update", "perplexity", note, log=True)

    def table(
        self, size: str, results: Mapping[str, ArmLooks], intervals: Mapping[str, dict[str, float]]
    ) -> dict[str, Any]:
        """A row per arm."""
        keys = ("ppl.{}", "flops.ppl.{}", "ppl.{}_at_once", "best_epoch.{}")
        return {
            "title": f"Every arm, {size} characters, corrected protocol",
            "note": "test perplexity, mean and 95 % t interval over seeds; equal FLOPs: those planned for "
            f"the arm {self.reference}; at once: before the first update of the last stage",
            "columns": ["arm", "equal updates", "equal FLOPs", "at once", "best epoch of the last stage"],
            "rows": [
                [arm, *(_cell(intervals.get(key.format(slug(arm)))) for key in keys)] for arm in results
            ],
        }

    def difference_table(self, size: str, intervals: Mapping[str, dict[str, float]]) -> dict[str, Any]:
        rows = [(one, other, f"diff.{one}_minus_{other}") for one, other in self.differences]
        return {
            "title": f"Differences in nats per character, {size} characters, corrected protocol",
            "note": "the first minus the second, paired by seed: negative is better",
            "columns": ["first", "second", "equal updates", "equal FLOPs"],
            "rows": [
                [
                    one.replace("_", " "),
                    other.replace("_", " "),
                    _cell(intervals[key]),
                    _cell(intervals.get(f"flops.{key}")),
                ]
                for one, other, key in rows
                if key in intervals
            ],
        }

    def sentences(self, size: str, intervals: Mapping[str, dict[str, float]]) -> list[str]:
        """What growth does, against training on and against training from scratch."""
        grown = slug(self.reference)
        said = {
            f"{grown}_1": "what it began with",
            "no_growth": "training on as long without a new layer",
            **{
                other: "training from scratch"
                for one, other in self.differences
                if one == grown and "scratch" in other
            },
        }
        parts = [
            f"{_words(intervals[f'diff.{grown}_minus_{other}'])} against {words}"
            for other, words in said.items()
            if f"diff.{grown}_minus_{other}" in intervals
        ]
        said_of = f"{size} characters, equal updates: {self.reference} differs by"
        return [f"{said_of} {', by '.join(parts)} (nats, negative is better)."] if parts else []


def points(results: Mapping[str, ArmLooks]) -> Values:
    """Test NLL of all points, as planned: at equal updates."""
    out = {name: stage.planned.nll for name, stage in _stages(results).items()}
    for arm, looks in results.items():
        out[slug(arm)] = looks.stages[-1].planned.nll
        if len(looks.stages) > 1:
            out[f"{slug(arm)}_at_once"] = looks.stages[-1].at_once
    return out


def points_at_equal_flops(results: Mapping[str, ArmLooks]) -> Values:
    """Test NLL of the arms whose last stage the budget pays for."""
    last = {slug(arm): looks.stages[-1].equal_flops for arm, looks in results.items()}
    return {name: best.nll for name, best in last.items() if best}


def _stages(results: Mapping[str, ArmLooks]) -> dict[str, StageLooks]:
    """Every stage by its point; an arm of one stage by its own name, and the last one by both."""
    out = {}
    for arm, looks in results.items():
        out[slug(arm)] = looks.stages[-1]
        if len(looks.stages) > 1:
            out |= {f"{slug(arm)}_{number}": stage for number, stage in enumerate(looks.stages, start=1)}
        if looks.fine_tuned:
            out[f"{slug(arm)}_fine_tuned"] = looks.fine_tuned
    return out


def slug(arm: str) -> str:
    return arm.replace(",", "").replace(" ", "_")


def _curve(looks: ArmLooks) -> list[dict[float, float]]:
    """Calibration perplexity by update, for every random seed."""
    stages = [*looks.stages, *([looks.fine_tuned] if looks.fine_tuned else [])]
    return [
        {
            float(updates): math.exp(min(row[seed], 100.0))
            for stage in stages
            for updates, row in zip(stage.updates, stage.calibration)
        }
        for seed in range(len(stages[0].planned.nll))
    ]


def _ppl(nll: list[float]) -> list[float]:
    return [math.exp(min(value, 100.0)) for value in nll]


def _cell(value: dict[str, float] | None) -> list[float] | None:
    return [value["value"], value["low"], value["high"]] if value else None


def _words(value: dict[str, float]) -> str:
    return f"{value['value']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]"
