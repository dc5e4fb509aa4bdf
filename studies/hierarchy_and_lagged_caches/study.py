"""What explains the gain of hierarchical recurrence over lagged caches? Experiment 1 of character-systems.

    python -m studies hierarchy_and_lagged_caches --corpus sotu

The report compared a hierarchical recurrent model (HRM), trained on the task twice per batch, with frozen
features of lagged caches (LCT) that were never trained on it ("OACD": a loss on the diversity of features,
without targets), and credited deep supervision. The arms here change one thing at a time, on the same text.

    hrm, hrm_one_segment           two levels (version 1) with and without deep supervision, which is an
                                   update for each of 2 segments per batch
    one_level_segments, one_level  one level with and without it: no hierarchy
    transformer                    two layers, no recurrence: nearly as many parameters as hrm
    lct_oacd_1, lct_oacd_2         lagged caches of 1 and 2 layers by OACD, then a head on frozen features
    untrained_1, untrained_2       the same head on features of layers as drawn
    lct_task_1                     lagged caches trained by the task's loss

Published: the report's set-up, the beginning of a corpus, with the best epoch reported on the text that chose
it. The lost code of the lagged caches is rebuilt from its description, 10 epochs in its first phase.
Corrected: equal updates of all arms ("ppl") and equal FLOPs of training ("flops.ppl", as many as one_level
spends; frozen features spend them on both phases, the head included), chosen on calibration text and judged
on test text, five random seeds. Where arms differ, ``diff`` is in nats, negative where the first is better;
``passage_ppl`` is the perplexity of the passage that the report reports on, which chose nothing. At 500k
characters only the first four arms run.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from torch import nn

from offramp.systems.deep_supervision import segments_objective
from offramp.systems.ensemble import Weights
from offramp.systems.hierarchical import HierarchicalConfig, HierarchicalLM
from offramp.systems.lagged.training import head_nll
from offramp.systems.objectives import Objective, named
from studies.common.characters import WINDOW, Characters, Sizes, corrected_splits, published_1a
from studies.common.comparison import (
    FFN_WIDTH,
    HEADS,
    WIDTH,
    Compared,
    compared,
    corrected_outcome,
    differences,
    flops_per_batch,
    limits,
    parameters,
    passage_ppl,
    published_outcome,
    transformer,
)
from studies.common.settings import Settings
from studies.common.study import Job, Outcome
from studies.common.training import CorrectedRun, Limits, PublishedTraining, train_corrected, train_published
from studies.common.workers import run_arms
from studies.hierarchy_and_lagged_caches.lagged import HeadTraining, Lagged

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


class PublishedSettings(PublishedTraining):
    """Of the published protocol."""

    passes: int
    """Of lagged caches over a batch, one update each."""
    lagged_epochs: int
    """Of their first phase."""
    head: HeadTraining


class CorrectedSettings(Settings):
    """Of the corrected protocol."""

    updates: dict[str, int]
    """By size of the text."""
    look_every: int
    """Updates between two looks at the calibration text."""
    passes: int
    head: HeadTraining


def published(job: Job) -> Outcome:
    """Every arm as the report ran it, with one random seed."""
    data = published_1a(job.text, Sizes.of(job.shared["characters"]))
    how = PublishedSettings.of(job.settings["published"])
    jobs = [(data, arm, how, job.seeds[0]) for arm in job.arms]
    return published_outcome(dict(zip(job.arms, run_arms(published_arm, jobs, job.processes))), derived)


def corrected(job: Job) -> Outcome:
    """Every arm on every size of the text that it is for, at equal updates and at equal FLOPs."""
    sizes, how = Sizes.of(job.shared["characters"]), CorrectedSettings.of(job.settings["corrected"])
    texts = {size: corrected_splits(job.text, size, sizes) for size in sizes.names(job.text.corpus)}
    places = [(size, arm) for size in texts for arm in job.arms if size != "500k" or arm in LEVELS]
    jobs = [(texts[size], arm, how.updates[size], how, job.seeds, size == "20k") for size, arm in places]
    results = run_arms(corrected_arm, jobs, job.processes)
    return corrected_outcome(dict(zip(places, results)), len(job.seeds), derived)


def build(arm: str, vocab_size: int) -> Callable[[int], nn.Module]:
    """The model of an arm without lagged caches, as initialised in the report."""
    if arm == "transformer":
        return lambda seed: transformer(2, vocab_size)
    config = HierarchicalConfig(vocab_size, WINDOW, WIDTH, HEADS, FFN_WIDTH, "v1", LEVELS[arm][0])
    return lambda seed: HierarchicalLM(config)


def objective(arm: str) -> Objective:
    return segments_objective(LEVELS[arm][1]) if arm in LEVELS else named("final", 2)


def published_arm(data: Characters, arm: str, how: PublishedSettings, seed: int) -> dict[str, float]:
    """Values of one arm as the report ran it."""
    if arm in LEVELS or arm == "transformer":
        run = train_published(
            build(arm, data.vocab_size),
            objective(arm),
            data,
            epochs=how.epochs,
            patience=how.patience,
            seed=seed,
        )
        return run.values(arm) | {f"parameters.{arm}": parameters(run.ensemble)}
    lagged = Lagged(data, FROZEN.get(arm, 1), [seed], how.passes, by_place=True)
    epochs = data.epochs(how.lagged_epochs)
    size = {f"parameters.{arm}": parameters(lagged.ensemble)}
    if arm == "lct_task_1":
        nll = [row[0] for row in lagged.train_task(epochs, select="validation").calibration]
        return size | {f"ppl.{arm}": math.exp(min(nll)), f"epoch.{arm}": 1 + nll.index(min(nll))}
    if not arm.startswith("untrained"):
        lagged.train("oacd", epochs[-1])
    head = lagged.fit_head("validation", how.head)
    return size | {
        f"ppl.{arm}": math.exp(min(row[0] for row in head.curve)),
        f"epoch.{arm}": head.best_epoch[0],
    }


def corrected_arm(
    data: Characters,
    arm: str,
    updates: int,
    how: CorrectedSettings,
    seeds: tuple[int, ...],
    passage: bool,
) -> Compared:
    """One arm on one size of text, all random seeds together; ``passage``: whether the calibration text is
    the passage of the report."""
    reference = build("one_level", data.vocab_size), objective("one_level")
    if arm in FROZEN or arm == "lct_task_1":
        lagged = Lagged(data, FROZEN.get(arm, 1), seeds, how.passes)
        flops = updates / reference[1].segments * flops_per_batch(*reference, data)
        if arm in FROZEN:
            paid = flops - lagged.phase_2_flops(how.head.epochs)
            if paid <= 0:  # a long text of one's own
                logging.warning(
                    "%s: its head alone costs more than equal FLOPs; that is after one batch of phase 1",
                    arm,
                )
            return _frozen_arm(lagged, arm, lagged.limits("oacd", updates, paid), how.head, passage)
        within = lagged.limits("task", updates, flops)
        return _compared(lagged.train_task(within.looks(how.look_every // how.passes)), within, passage)
    model = build(arm, data.vocab_size), objective(arm)
    within = limits(*model, data, updates, reference)
    look_every = how.look_every // model[1].segments
    run = train_corrected(*model, data, within, look_every=look_every, seeds=seeds)
    return _compared(run, within, passage)


def _compared(run: CorrectedRun, within: Limits, passage: bool) -> Compared:
    more = passage_ppl(run, within.updates) if passage else []
    result = compared(run, within)
    result.more = more
    return result


def _frozen_arm(lagged: Lagged, arm: str, within: Limits, head: HeadTraining, passage: bool) -> Compared:
    """Features of layers as drawn, or after phase 1 within its limits, and the head of phase 2, whose updates
    are not counted."""
    after: dict[int, Weights] = {}

    def keep(batches: int) -> None:
        after[batches] = lagged.ensemble.snapshot()

    if not arm.startswith("untrained"):
        counted = within.updates, within.flops
        lagged.train("oacd", max(counted), counted, keep)
        lagged.ensemble.restore(after[within.updates])
    nll, epochs, calibration = _judged(lagged, head)
    more = [{"passage_ppl": math.exp(value)} for value in _passage_nll(lagged, head)] if passage else []
    flops_nll = nll
    if after and within.flops != within.updates:
        lagged.ensemble.restore(after[within.flops])
        flops_nll = _judged(lagged, head)[0]
    updates = float(within.updates * lagged.passes)
    level = [{0.0: math.exp(value), updates: math.exp(value)} for value in calibration]
    return Compared(nll, flops_nll, epochs, parameters(lagged.ensemble), level, more)


def _passage_nll(lagged: Lagged, how: HeadTraining) -> list[float]:
    """NLL of the calibration text by random seed, with the best head by the test text."""
    head = lagged.fit_head("test", how)
    return head_nll(head.weights, *lagged.features("calibration")).tolist()


def _judged(lagged: Lagged, how: HeadTraining) -> tuple[list[float], list[float], list[float]]:
    """By random seed, with the best head by the calibration text: NLL of the test text, the epochs it took,
    NLL of the calibration text."""
    head = lagged.fit_head("calibration", how)
    nll = head_nll(head.weights, *lagged.features("test")).tolist()
    return nll, [float(epoch) for epoch in head.best_epoch], [min(row) for row in zip(*head.curve)]


def derived(nll: dict[str, float]) -> dict[str, float]:
    """Differences in nats of the arms that there are, and shares of the way from lct_oacd_1 to hrm: lost
    again without deep supervision, and gone by the task's loss alone."""
    out = differences(nll, PAIRS)
    if {"lct_oacd_1", "lct_task_1", "hrm_one_segment", "hrm"} <= set(nll):
        gap = nll["lct_oacd_1"] - nll["hrm"]
        out["share.deep_supervision"] = (nll["hrm_one_segment"] - nll["hrm"]) / gap
        out["share.task_loss"] = (nll["lct_oacd_1"] - nll["lct_task_1"]) / gap
    return out
