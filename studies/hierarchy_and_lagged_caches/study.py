"""Seed 001, experiment 1: what explains the gain of a hierarchical recurrent model (HRM) over lagged caches with OACD?

    python -m studies.hierarchy_and_lagged_caches.study --corpus sotu

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
training ("flops.ppl", as many as one_level spends; frozen features spend them on both phases, the head included), chosen on
calibration text and judged on test text, 5 seeds. Where arms differ, ``diff`` is in nats, negative where the first is better.
At 500k characters only the first four arms run.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from offramp.systems.deep_supervision import segments_objective
from offramp.systems.ensemble import Weights
from offramp.systems.hierarchical import HierarchicalConfig, HierarchicalLM
from offramp.systems.lagged.training import head_nll
from offramp.systems.objectives import Objective, named
from studies.common.characters import SIZES_OF, WINDOW, corrected, published_1a
from studies.common.comparison import (
    FFN_WIDTH,
    HEADS,
    WIDTH,
    Compared,
    compared,
    corrected_values,
    differences,
    flops_per_batch,
    learning_curves,
    limits,
    parameters,
    published_values,
    transformer,
)
from studies.common.results import study_params
from studies.common.text import StudyText
from studies.common.training import Limits, train_corrected, train_published
from studies.common.workers import PUBLISHED_SEED, SEEDS, Outcome, both_protocols, study_main
from studies.hierarchy_and_lagged_caches.lagged import Lagged

STUDY = "hierarchy_and_lagged_caches"
SETTINGS: dict[str, Any] = study_params(STUDY)
FLAWS = [
    "F1 the lagged cache is kept by the batch's place in the epoch while batches are shuffled",
    "F2 features trained on the task are compared with features that never were, and deep supervision gets the credit",
    "F3 the hierarchical model makes two updates per batch",
]

LEVELS = {
    "one_level": ((1,), 1),
    "one_level_segments": ((1,), 2),
    "hrm_one_segment": ((1, 2), 1),
    "hrm": ((1, 2), 2),
}
"""Periods of the levels, and segments per batch."""
FROZEN = {"lct_oacd_1": 1, "lct_oacd_2": 2, "untrained_1": 1, "untrained_2": 2}
"""Layers of the arms whose features never saw a target."""
ARMS = (*LEVELS, "transformer", "lct_task_1", *FROZEN)
PAIRS = (
    ("lct_oacd_1", "hrm"),
    ("lct_oacd_2", "hrm"),
    ("lct_oacd_2", "lct_oacd_1"),
    ("lct_oacd_1", "untrained_1"),
    ("lct_oacd_2", "untrained_2"),
    ("lct_task_1", "hrm"),
    ("lct_oacd_1", "lct_task_1"),
    ("hrm", "hrm_one_segment"),
    ("one_level_segments", "one_level"),
    ("hrm", "one_level_segments"),
    ("hrm_one_segment", "one_level"),
    ("hrm", "transformer"),
)


def build(arm: str, vocab_size: int) -> Callable[[int], nn.Module]:
    """The model of an arm without lagged caches, as initialised in the seed."""
    if arm == "transformer":
        return lambda seed: transformer(2, vocab_size)
    config = HierarchicalConfig(vocab_size, WINDOW, WIDTH, HEADS, FFN_WIDTH, "v1", LEVELS[arm][0])
    return lambda seed: HierarchicalLM(config)


def objective(arm: str) -> Objective:
    return segments_objective(LEVELS[arm][1]) if arm in LEVELS else named("final", 2)


# Published ------------------------------------------------------------------------------------------------------------


def published_arm(text: StudyText, arm: str, settings: dict[str, Any]) -> dict[str, float]:
    """Values of one arm as the seed ran it."""
    data = published_1a(text)
    if arm in LEVELS or arm == "transformer":
        run = train_published(
            build(arm, data.vocab_size),
            objective(arm),
            data,
            settings["epochs"],
            settings["patience"],
            PUBLISHED_SEED,
        )
        return run.values(arm) | {f"parameters.{arm}": parameters(run.ensemble)}
    lagged = Lagged(data, FROZEN.get(arm, 1), [PUBLISHED_SEED], settings["passes"], by_place=True)
    epochs = data.epochs(settings["lagged_epochs"])
    shared = {f"parameters.{arm}": parameters(lagged.ensemble)}
    if arm == "lct_task_1":
        run = lagged.train_task(epochs, select="validation")
        nll = [row[0] for row in run.calibration]
        return shared | {f"ppl.{arm}": math.exp(min(nll)), f"epoch.{arm}": 1 + nll.index(min(nll))}
    if not arm.startswith("untrained"):
        lagged.train("oacd", epochs[-1])
    head = lagged.fit_head("validation", settings["head"])
    return shared | {
        f"ppl.{arm}": math.exp(min(row[0] for row in head.curve)),
        f"epoch.{arm}": head.best_epoch[0],
    }


# Corrected ------------------------------------------------------------------------------------------------------------


def corrected_arm(
    text: StudyText, size: str, arm: str, settings: dict[str, Any], seeds: Sequence[int]
) -> Compared:
    """One arm on one size of text, all seeds together."""
    data, updates, look_every = corrected(text, size), settings["updates"][size], settings["look_every"]
    reference = build("one_level", data.vocab_size), objective("one_level")
    if arm in FROZEN or arm == "lct_task_1":
        lagged = Lagged(data, FROZEN.get(arm, 1), seeds, settings["passes"])
        flops = updates / reference[1].segments * flops_per_batch(*reference, data)
        if arm in FROZEN:
            paid = flops - lagged.phase_2_flops(settings["head"]["epochs"])
            if paid <= 0:  # a long text of one's own
                logging.warning(
                    "%s: its head alone costs more than equal FLOPs; that figure is after one batch of phase 1",
                    arm,
                )
            return _frozen_arm(lagged, arm, lagged.limits("oacd", updates, paid), settings["head"])
        within = lagged.limits("task", updates, flops)
        return compared(lagged.train_task(within.looks(look_every // settings["passes"])), within)
    own = build(arm, data.vocab_size), objective(arm)
    within = limits(*own, data, updates, reference)
    return compared(train_corrected(*own, data, within, look_every // own[1].segments, seeds), within)


def _frozen_arm(lagged: Lagged, arm: str, within: Limits, head: dict[str, Any]) -> Compared:
    """Features of layers as drawn, or after phase 1 within its limits, and the head of phase 2, whose updates are not counted."""
    after: dict[int, Weights] = {}

    def keep(batches: int) -> None:
        after[batches] = lagged.ensemble.snapshot()

    if not arm.startswith("untrained"):
        counted = within.updates, within.flops
        lagged.train("oacd", max(counted), counted, keep)
        lagged.ensemble.restore(after[within.updates])
    nll, epochs, calibration = _judged(lagged, head)
    flops_nll = nll
    if after and within.flops != within.updates:
        lagged.ensemble.restore(after[within.flops])
        flops_nll = _judged(lagged, head)[0]
    updates = float(within.updates * lagged.passes)
    level = [{0.0: math.exp(value), updates: math.exp(value)} for value in calibration]
    return Compared(nll, flops_nll, epochs, parameters(lagged.ensemble), level)


def _judged(lagged: Lagged, settings: dict[str, Any]) -> tuple[list[float], list[float], list[float]]:
    """By seed, with the best head by the calibration text: NLL of the test text, the epochs it took, NLL of the calibration text."""
    head = lagged.fit_head("calibration", settings)
    nll = head_nll(head.weights, *lagged.features("test")).tolist()
    return nll, [float(epoch) for epoch in head.best_epoch], [min(row) for row in zip(*head.curve)]


# Both -----------------------------------------------------------------------------------------------------------------


def derived(nll: dict[str, float]) -> dict[str, float]:
    """Differences in nats of the arms that there are, and shares of the way from lct_oacd_1 to hrm: lost again without deep
    supervision, and gone by the task's loss alone."""
    out = differences(nll, PAIRS)
    if {"lct_oacd_1", "lct_task_1", "hrm_one_segment", "hrm"} <= set(nll):
        gap = nll["lct_oacd_1"] - nll["hrm"]
        out["share.deep_supervision"] = (nll["hrm_one_segment"] - nll["hrm"]) / gap
        out["share.task_loss"] = (nll["lct_oacd_1"] - nll["lct_task_1"]) / gap
    return out


def run(
    text: StudyText,
    protocol: str,
    arms: Sequence[str],
    settings: dict[str, Any] = SETTINGS,
    seeds: Sequence[int] = tuple(SEEDS),
) -> Outcome:
    """Both protocols on one text; text of one's own has the corrected one alone."""
    outcome, published_jobs, jobs = Outcome(), [], []
    if protocol in ("published", "both") and text.corpus != "own":
        published_jobs = [(text, arm, settings["published"]) for arm in arms]
    if protocol in ("corrected", "both"):
        jobs = [
            (text, size, arm, settings["corrected"], seeds)
            for size in SIZES_OF[text.corpus]
            for arm in arms
            if size != "500k" or arm in LEVELS
        ]
    published, found = both_protocols(published_arm, published_jobs, corrected_arm, jobs)
    if published_jobs:
        outcome.published = published_values(published, [arm for _, arm, _ in published_jobs], derived)
    if jobs:
        by_size: dict[str, dict[str, Compared]] = {size: {} for _, size, *_ in jobs}
        for (_, size, arm, *_), one in zip(jobs, found):
            by_size[size][arm] = one
        outcome.corrected = corrected_values(by_size, len(seeds), derived)
        outcome.figures["learning_curves"] = learning_curves(by_size)
    return outcome


main = study_main(STUDY, __doc__.splitlines()[0], ARMS, FLAWS, run)

if __name__ == "__main__":
    main()
