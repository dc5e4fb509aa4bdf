"""The studies of experiments 5 to 7 from their arms: values by key, tables, curves and the command line.

Keys, where POINT is an arm (``greedy``), one of its stages (``greedy_2``), what it is before the first update of its last
stage (``greedy_at_once``, a perplexity alone), or after fine-tuning (``greedy_fine_tuned``); corrected ones begin with the size
of the text:

    ppl.POINT  diff.POINT_minus_POINT   perplexity, and a difference in nats, at equal numbers of updates
    flops.ppl.ARM  flops.diff....       the same at equal FLOPs of training
    best_epoch.POINT  parameters.POINT  epochs of the stage until its best look; parameters that learn in it

Shapes: S seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from offramp.errors import UserError
from studies.common.workers import PUBLISHED_SEED, SEEDS, Outcome, Run, study_main
from studies.common.characters import SIZES_OF, Characters, corrected, published_1b
from studies.common.curves import panels_figure
from studies.common.growing import Arm, ArmLooks, Plan, StageLooks, Task, planned_flops, train_all
from studies.common.results import over_seeds, study_params
from studies.common.text import CORPORA, StudyText
from studies.common.training import by_seed

PANGRAM = "pangram"
FLAWS = [
    "F9 two repeated sentences, a pangram and another one, in place of WikiText-2: every update after the first few dozen makes "
    "the validation loss worse, whatever the model",
    "F10 every stage goes on from the last, overfitted weights of the one before, not from its best",
    "the split that stops training is the one that is reported; one seed; no arm that trains on without a new layer",
]
Values = dict[str, list[float]]
"""By key, one number per seed."""


@dataclass(frozen=True)
class Experiment:
    """What a study trains and compares."""

    name: str
    summary: str
    flaws: list[str]
    arms: Mapping[str, Arm]
    """Corrected."""
    published: Mapping[str, Arm]
    """As in the seed, on the pangram."""
    fewer: Mapping[str, list[str]]
    """Where not all of them run: by size, and ``pangram`` for the corrected protocol on that."""
    reference: str
    """The growing arm whose cost is that of equal FLOPs."""
    differences: list[tuple[str, str]]
    """Pairs of points, the first minus the second."""
    drawn: list[str]
    """Arms in the plot."""

    def main(self) -> Callable[[], None]:
        """The command line of the study."""
        arms = dict.fromkeys([*self.arms, *self.published])
        return study_main(
            self.name, self.summary, arms, self.flaws, self.run(study_params(self.name)), (PANGRAM, *CORPORA)
        )

    def run(self, settings: dict[str, Any], seeds: Sequence[int] = SEEDS) -> Run:
        """``settings``: the study's section of the parameters."""

        def run(text: StudyText, protocol: str, arms: list[str]) -> Outcome:
            tasks = self.tasks(text, protocol, arms, settings, seeds)
            return self.outcome(tasks, train_all(tasks))

        return run

    def tasks(
        self, text: StudyText, protocol: str, arms: list[str], settings: dict[str, Any], seeds: Sequence[int]
    ) -> dict[str, Task]:
        """By "published" and the sizes of the text. UserError for the published protocol on another text than the pangram,
        and for arms of which none is trained on this one."""
        out = {}
        if text.corpus == PANGRAM:
            if protocol != "corrected":
                data, how = published_1b(), settings["published"]
                plan = Plan((PUBLISHED_SEED,), *[how["epochs"]] * 3, data.batches_per_epoch, how["patience"])
                out["published"] = Task(_some(self.published, arms), data, plan)
            sizes = {"20k": (published_1b(), "pangram")} if protocol != "published" else {}
        elif protocol == "published":
            raise UserError(
                f"--protocol = 'published': {self.name} was published on the pangram; give --corpus pangram, or "
                "--protocol corrected for this text"
            )
        else:
            sizes = {size: (corrected(text, size), size) for size in SIZES_OF[text.corpus]}
        for size, (data, kind) in sizes.items():
            plan = Plan(tuple(seeds), **settings["20k" if kind == "own" else kind])
            some = _some(self.arms, [arm for arm in arms if arm in self.fewer.get(kind, self.arms)])
            out[size] = Task(some, data, plan, planned_flops(self.arms[self.reference], data, plan))
        found = {name: task for name, task in out.items() if task.arms}
        if not found:
            raise UserError(
                f"--arm = {', '.join(arms)!r}: not trained on the text {text.corpus}, --protocol {protocol}; leave "
                "--arm out to see which are"
            )
        return found

    def outcome(self, tasks: Mapping[str, Task], found: Mapping[str, dict[str, ArmLooks]]) -> Outcome:
        values = {name: self.values(found[name], task.text) for name, task in tasks.items()}
        sizes = [name for name in tasks if name != "published"]
        keyed = {f"{size}.{key}": numbers for size in sizes for key, numbers in values[size].items()}
        rows = by_seed(keyed) if keyed else None
        published = (
            {key: numbers[0] for key, numbers in values["published"].items()}
            if "published" in values
            else None
        )
        figures: dict[str, Any] = {"growth": self.curves(tasks, found)}
        sentences = []
        for size in sizes:
            known = over_seeds(by_seed(values[size]))
            figures[f"arms.{size}"] = self.table(size, found[size], known)
            figures[f"differences.{size}"] = self.difference_table(size, known)
            sentences += self.sentences(size, known)
        return Outcome(published, rows, figures, sentences)

    def values(self, found: Mapping[str, ArmLooks], text: Characters) -> Values:
        """All keys of one task."""
        equal_updates, equal_flops = points(found), points_at_equal_flops(found)
        out = {f"ppl.{name}": _ppl(nll) for name, nll in equal_updates.items()}
        out |= {f"flops.ppl.{name}": _ppl(nll) for name, nll in equal_flops.items()}
        for prefix, some in (("", equal_updates), ("flops.", equal_flops)):
            out |= {
                f"{prefix}diff.{one}_minus_{other}": [a - b for a, b in zip(some[one], some[other])]
                for one, other in self.differences
                if one in some and other in some
            }
        for name, stage in _stages(found).items():
            epochs = [
                (updates - stage.updates_before) / text.batches_per_epoch for updates in stage.planned.updates
            ]
            out |= {
                f"best_epoch.{name}": epochs,
                f"parameters.{name}": [float(stage.parameters)] * len(epochs),
            }
        return out

    def curves(self, tasks: Mapping[str, Task], found: Mapping[str, dict[str, ArmLooks]]) -> dict[str, Any]:
        """Perplexity of the calibration text by update of the drawn arms, to the later of their two limits."""
        panels = {
            _title(name, task): {
                arm: _curve(looks) for arm, looks in found[name].items() if arm in self.drawn
            }
            for name, task in tasks.items()
        }
        note = (
            "perplexity on the text that selects, by update over all stages; bands: 95 % t intervals over seeds. A published "
            "stage ends once it stopped improving"
        )
        return panels_figure("Growth curves", panels, "text", "update", "perplexity", note, log=True)

    def table(
        self, size: str, found: Mapping[str, ArmLooks], known: dict[str, dict[str, float]]
    ) -> dict[str, Any]:
        """A row per arm."""
        keys = ("ppl.{}", "flops.ppl.{}", "ppl.{}_at_once", "best_epoch.{}")
        return {
            "title": f"Every arm, {size} characters, corrected protocol",
            "note": "test perplexity, mean and 95 % t interval over seeds; equal FLOPs: those planned for the arm "
            f"{self.reference}; at once: before the first update of the last stage",
            "columns": ["arm", "equal updates", "equal FLOPs", "at once", "best epoch of the last stage"],
            "rows": [[arm, *(_cell(known.get(key.format(slug(arm)))) for key in keys)] for arm in found],
        }

    def difference_table(self, size: str, known: dict[str, dict[str, float]]) -> dict[str, Any]:
        rows = [(one, other, f"diff.{one}_minus_{other}") for one, other in self.differences]
        return {
            "title": f"Differences in nats per character, {size} characters, corrected protocol",
            "note": "the first minus the second, paired by seed: negative is better",
            "columns": ["first", "second", "equal updates", "equal FLOPs"],
            "rows": [
                [
                    one.replace("_", " "),
                    other.replace("_", " "),
                    _cell(known[key]),
                    _cell(known.get(f"flops.{key}")),
                ]
                for one, other, key in rows
                if key in known
            ],
        }

    def sentences(self, size: str, known: dict[str, dict[str, float]]) -> list[str]:
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
            f"{_words(known[f'diff.{grown}_minus_{other}'])} against {words}"
            for other, words in said.items()
            if f"diff.{grown}_minus_{other}" in known
        ]
        said_of = f"{size} characters, equal updates: {self.reference} differs by"
        return [f"{said_of} {', by '.join(parts)} (nats, negative is better)."] if parts else []


def points(found: Mapping[str, ArmLooks]) -> Values:
    """Test NLL of all points, as planned: at equal updates."""
    out = {name: stage.planned.nll for name, stage in _stages(found).items()}
    for arm, looks in found.items():
        out[slug(arm)] = looks.stages[-1].planned.nll
        if len(looks.stages) > 1:
            out[f"{slug(arm)}_at_once"] = looks.stages[-1].at_once
    return out


def points_at_equal_flops(found: Mapping[str, ArmLooks]) -> Values:
    """Test NLL of the arms whose last stage the budget pays for."""
    last = {slug(arm): looks.stages[-1].equal_flops for arm, looks in found.items()}
    return {name: best.nll for name, best in last.items() if best}


def _stages(found: Mapping[str, ArmLooks]) -> dict[str, StageLooks]:
    """Every stage by its point; an arm of one stage by its own name, and the last one by both."""
    out = {}
    for arm, looks in found.items():
        out[slug(arm)] = looks.stages[-1]
        if len(looks.stages) > 1:
            out |= {f"{slug(arm)}_{number}": stage for number, stage in enumerate(looks.stages, start=1)}
        if looks.fine_tuned:
            out[f"{slug(arm)}_fine_tuned"] = looks.fine_tuned
    return out


def slug(arm: str) -> str:
    return arm.replace(",", "").replace(" ", "_")


def _some(arms: Mapping[str, Arm], wanted: list[str]) -> dict[str, Arm]:
    return {name: arm for name, arm in arms.items() if name in wanted}


def _curve(looks: ArmLooks) -> list[dict[float, float]]:
    """Calibration perplexity by update, for every seed."""
    stages = [*looks.stages, *([looks.fine_tuned] if looks.fine_tuned else [])]
    return [
        {
            float(updates): math.exp(min(row[seed], 100.0))
            for stage in stages
            for updates, row in zip(stage.updates, stage.calibration)
        }
        for seed in range(len(stages[0].planned.nll))
    ]


def _title(name: str, task: Task) -> str:
    if name == "published":
        return "as published: pangram, one run"
    return f"corrected, {'pangram' if 'validation' in task.text.splits else f'{name} characters'}"


def _ppl(nll: list[float]) -> list[float]:
    return [math.exp(min(value, 100.0)) for value in nll]


def _cell(value: dict[str, float] | None) -> list[float] | None:
    return [value["value"], value["low"], value["high"]] if value else None


def _words(value: dict[str, float]) -> str:
    return f"{value['value']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]"
