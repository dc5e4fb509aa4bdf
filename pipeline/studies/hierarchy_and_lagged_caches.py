"""Seed 001, experiment 1: what explains the gain of a hierarchical recurrent model (HRM) over lagged caches with OACD?

    python -m pipeline.studies.hierarchy_and_lagged_caches --corpus sotu

The seed compared a model trained on the task, twice per batch, with frozen features that were never trained on it, and credited
deep supervision. The arms here change one thing at a time, on the same text:

    hrm, hrm_one_segment                two levels (version 1) with and without deep supervision (2 segments per batch)
    one_level_segments, one_level       one level with and without it: no hierarchy
    transformer                         two layers, no recurrence: nearly as many parameters as hrm
    lct_oacd_1, lct_oacd_2              lagged caches of 1 and 2 layers by OACD, then a head on the frozen features
    untrained_1, untrained_2            the same head on features of layers as drawn
    lct_task_1                          lagged caches trained by the task's loss

Published: set-up 1A as in the seed, the best epoch reported on the text that chose it. The lost code of the lagged caches is
rebuilt from its description, 10 epochs in its first phase. Corrected: equal updates of all arms ("ppl") and equal FLOPs of
training ("flops.ppl", as many as one_level spends), chosen on calibration text and judged on test text, 5 seeds. Where arms
differ, ``diff`` is in nats, negative where the first is better. At 500k characters only the first four arms run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from offramp.models.native import BlockwiseLM, ModelConfig
from offramp.models.recursive import RecursiveConfig, RecursiveLM
from offramp.nn.init import truncated_normal
from offramp.training.ensemble import Ensemble, batch_flops
from offramp.training.lagged import head_nll
from offramp.training.objectives import Objective, from_logits
from offramp.training.segments import segments_objective
from pipeline.studies._arms import PUBLISHED_SEED, SEEDS, Outcome, run_arms, study_main
from pipeline.studies._characters import BATCH_SIZE, SIZES_OF, WINDOW, Characters, corrected, published_1a
from pipeline.studies._curves import panels_figure
from pipeline.studies._lagged import Lagged
from pipeline.studies._results import study_params
from pipeline.studies._text import StudyText
from pipeline.studies._training import train_corrected, train_published

STUDY = "hierarchy_and_lagged_caches"
SETTINGS: dict[str, Any] = study_params(STUDY)
FLAWS = [
    "F1 the lagged cache is kept by the batch's place in the epoch while batches are shuffled",
    "F2 features trained on the task are compared with features that never were, and deep supervision gets the credit",
    "F3 the hierarchical model makes two updates per batch",
]

WIDTH, HEADS, FFN_WIDTH = 64, 4, 256
LEVELS = {"one_level": ((1,), 1), "one_level_segments": ((1,), 2), "hrm_one_segment": ((1, 2), 1), "hrm": ((1, 2), 2)}
"""Periods of the levels, and segments per batch."""
ON_THE_TASK = (*LEVELS, "transformer", "lct_task_1")
FROZEN = {"lct_oacd_1": 1, "lct_oacd_2": 2, "untrained_1": 1, "untrained_2": 2}
"""Layers of the arms whose features never saw a target."""
ARMS = (*ON_THE_TASK, *FROZEN)
DIFFERENCES = (
    ("lct_oacd_1", "hrm"), ("lct_oacd_2", "hrm"), ("lct_oacd_2", "lct_oacd_1"), ("lct_oacd_1", "untrained_1"),
    ("lct_oacd_2", "untrained_2"), ("lct_task_1", "hrm"), ("lct_oacd_1", "lct_task_1"), ("hrm", "hrm_one_segment"),
    ("one_level_segments", "one_level"), ("hrm", "one_level_segments"), ("hrm_one_segment", "one_level"), ("hrm", "transformer"),
)


@dataclass
class Found:
    """What one arm came to; lists over seeds."""

    nll: list[float]
    """In nats, at equal updates."""
    flops_nll: list[float] | None
    """At equal FLOPs; None for arms that are trained in two phases."""
    epochs: list[float]
    """Passes over the training text until the best."""
    parameters: int
    curves: list[dict[float, float]] = field(default_factory=list)


def build(arm: str, vocab_size: int) -> Callable[[int], nn.Module]:
    """The model of an arm of ON_THE_TASK other than lagged caches, as initialised in the seed."""
    def model(seed: int) -> nn.Module:
        if arm in LEVELS:
            return RecursiveLM(RecursiveConfig(vocab_size, WINDOW, WIDTH, HEADS, FFN_WIDTH, "v1", LEVELS[arm][0]))
        plain = BlockwiseLM(ModelConfig(vocab_size, WINDOW, WIDTH, HEADS, FFN_WIDTH, (2,), norm="post", tied=False))
        truncated_normal(plain, WIDTH**-0.5)
        nn.init.trunc_normal_(plain.heads[0], std=WIDTH**-0.5)
        return plain

    return model


def objective(arm: str) -> Objective:
    return segments_objective(LEVELS[arm][1]) if arm in LEVELS else from_logits(lambda model, x: model.logits(0, model(x)[0]))


def parameters(ensemble: Ensemble) -> int:
    """Of one model, those included that no loss reaches."""
    return sum(weight[0].numel() for weight in ensemble.weights.values())


# Published ------------------------------------------------------------------------------------------------------------

def published_arm(text: StudyText, arm: str, settings: dict[str, Any]) -> dict[str, float]:
    """Values of one arm as the seed ran it."""
    data = published_1a(text)
    if arm in LEVELS or arm == "transformer":
        run = train_published(build(arm, data.vocab_size), objective(arm), data, settings["epochs"], settings["patience"],
                              PUBLISHED_SEED)
        return run.values(arm) | {f"parameters.{arm}": parameters(run.ensemble)}
    lagged = Lagged(data, FROZEN.get(arm, 1), [PUBLISHED_SEED], settings["passes"], by_place=True)
    updates = settings["lagged_epochs"] * data.batches_per_epoch * settings["passes"]
    shared = {f"parameters.{arm}": parameters(lagged.ensemble)}
    if arm == "lct_task_1":
        run = lagged.train_task(updates, settings["lagged_epochs"], select="validation")
        nll = [row[0] for row in run.calibration]
        return shared | {f"ppl.{arm}": math.exp(min(nll)), f"epoch.{arm}": 1 + nll.index(min(nll))}
    if not arm.startswith("untrained"):
        lagged.train("oacd", updates)
    head = lagged.fit_head("validation", settings["head"])
    return shared | {f"ppl.{arm}": math.exp(min(row[0] for row in head.curve)), f"epoch.{arm}": head.best_epoch[0]}


# Corrected ------------------------------------------------------------------------------------------------------------

def corrected_arm(text: StudyText, size: str, arm: str, settings: dict[str, Any], seeds: Sequence[int]) -> Found:
    """One arm on one size of text, all seeds together."""
    data = corrected(text, size)
    updates, looks = settings["updates"][size], settings["looks"][size]
    if arm in FROZEN:
        return _frozen_arm(data, arm, updates, settings, seeds)
    if arm == "lct_task_1":
        run = Lagged(data, 1, seeds, settings["passes"]).train_task(updates, looks)
    else:
        run = train_corrected(build(arm, data.vocab_size), objective(arm), data, updates, looks, seeds)
    within = run.looks_within(flops=flop_budget(data, updates))
    flops_nll = run.test_nll(within)
    epochs = [(look + 1) * run.batches_per_look / data.batches_per_epoch for look in run.choose(looks)]
    return Found(run.test_nll(looks), flops_nll, epochs, parameters(run.ensemble), run.curves())


def flop_budget(data: Characters, updates: int) -> float:
    """FLOPs of ``updates`` updates of one_level, of one model."""
    cheapest = Ensemble(build("one_level", data.vocab_size), [0])
    return updates * batch_flops(cheapest, objective("one_level"), *(part[:BATCH_SIZE] for part in data.windows("train")))


def _frozen_arm(data: Characters, arm: str, updates: int, settings: dict[str, Any], seeds: Sequence[int]) -> Found:
    lagged = Lagged(data, FROZEN[arm], seeds, settings["passes"])
    if not arm.startswith("untrained"):
        lagged.train("oacd", updates)
    head = lagged.fit_head("calibration", settings["head"])
    return Found(head_nll(head.weights, *lagged.features("test")).tolist(), None, [float(epoch) for epoch in head.best_epoch],
                 parameters(lagged.ensemble))


# Both -----------------------------------------------------------------------------------------------------------------

def derived(nll: dict[str, float]) -> dict[str, float]:
    """Differences in nats of the arms that there are, and shares of the way from lct_oacd_1 to hrm: lost again without deep
    supervision, and gone by the task's loss alone."""
    out = {f"diff.{one}_minus_{other}": nll[one] - nll[other] for one, other in DIFFERENCES if {one, other} <= set(nll)}
    if {"lct_oacd_1", "hrm"} <= set(nll):
        gap = nll["lct_oacd_1"] - nll["hrm"]
        if "hrm_one_segment" in nll:
            out["share.deep_supervision"] = (nll["hrm_one_segment"] - nll["hrm"]) / gap
        if "lct_task_1" in nll:
            out["share.task_loss"] = (nll["lct_oacd_1"] - nll["lct_task_1"]) / gap
    return out


def _values(size: str, found: dict[str, Found], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """One dict per seed with all keys of a size."""
    rows = []
    for place in range(len(seeds)):
        row: dict[str, float] = {}
        for prefix, which in (("", "nll"), ("flops.", "flops_nll")):
            nll = {arm: getattr(one, which)[place] for arm, one in found.items() if getattr(one, which) is not None}
            row |= {f"{prefix}ppl.{arm}": math.exp(value) for arm, value in nll.items()}
            row |= {f"{prefix}{name}": value for name, value in derived(nll).items()}
        for arm, one in found.items():
            row |= {f"epoch.{arm}": one.epochs[place], f"parameters.{arm}": one.parameters}
        rows.append({f"{size}.{name}": value for name, value in row.items()})
    return rows


def run(text: StudyText, protocol: str, arms: Sequence[str], settings: dict[str, Any] = SETTINGS,
        seeds: Sequence[int] = tuple(SEEDS)) -> Outcome:
    """Both protocols on one text."""
    outcome = Outcome()
    if protocol in ("published", "both") and text.corpus != "own":
        found = run_arms(published_arm, [(text, arm, settings["published"]) for arm in arms])
        values = {name: value for arm in found for name, value in arm.items()}
        nll = {arm: math.log(values[f"ppl.{arm}"]) for arm in arms}
        outcome.published = values | derived(nll)
    if protocol in ("corrected", "both"):
        _run_corrected(outcome, text, arms, settings["corrected"], seeds)
    return outcome


def _run_corrected(outcome: Outcome, text: StudyText, arms: Sequence[str], settings: dict[str, Any], seeds: Sequence[int]) -> None:
    jobs = [(size, arm) for size in SIZES_OF[text.corpus] for arm in arms if size != "500k" or arm in LEVELS]
    found = dict(zip(jobs, run_arms(corrected_arm, [(text, size, arm, settings, seeds) for size, arm in jobs])))
    sizes = {size: {arm: found[size, arm] for place, arm in jobs if place == size} for size, _ in jobs}
    parts = [_values(size, of_size, seeds) for size, of_size in sizes.items()]
    outcome.corrected = [{name: value for part in parts for name, value in part[place].items()} for place in range(len(seeds))]
    panels = {f"{size} characters": {arm: one.curves or _level(one.nll, settings["updates"][size]) for arm, one in of_size.items()}
              for size, of_size in sizes.items()}
    outcome.figures["learning_curves"] = panels_figure(
        "Perplexity by update, calibration text", panels, "text", "updates", "perplexity",
        note="Features without targets (lct_oacd, untrained): test perplexity of the head fitted to them.", log=True)


def _level(nll: list[float], updates: int) -> list[dict[float, float]]:
    """A horizontal line per seed: the result of an arm that has no learning curve."""
    return [{0.0: math.exp(value), float(updates): math.exp(value)} for value in nll]


main = study_main(STUDY, __doc__.splitlines()[0], ARMS, FLAWS, run)

if __name__ == "__main__":
    main()
