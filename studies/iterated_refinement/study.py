"""Does refining a state in two passes help? Experiment 3 of the report character-systems.

    python -m studies iterated_refinement --corpus sotu

Published: one-layer models on 20,000 characters, each until its best epoch. Iterated refinement (irt) and the
hierarchical model (HRM) then make two updates per batch where the standard model makes one, HRM's first layer
never learns (hrm_published), and both spend twice the compute of the standard model when they are used.

Corrected: five random seeds at equal updates, and at equal FLOPs of training. Controls: a standard model that
updates twice per batch too (repeated), one that costs as much as irt in use (standard_2), the two passes with
one loss and the gradient through both (unrolled), and HRM with its gradient mended (hrm). All arms have a
fixed number of updates, at 20,000 characters 30 epochs of the standard model and 15 of those that update
twice per batch: long enough for the best look to come before the end, as in the report.

    passage_ppl.ARM    perplexity of the passage that the report reports on, which chose nothing
    pass_gain.ARM      nats by which the second pass predicts better than the first
    lead.irt           nats by which irt is better than the better one of standard and hrm
    half_of_hrm.irt    nats that irt gains over standard, minus half of those that hrm gains
                       (of both: lead_published and half_of_hrm_published, against hrm_published)
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from offramp.systems.deep_supervision import segments_objective
from offramp.systems.ensemble import Ensemble, mean_nll
from offramp.systems.hierarchical import HierarchicalConfig, HierarchicalLM
from offramp.systems.iterated import IteratedLM, unrolled
from offramp.systems.objectives import Objective, from_logits, named, repeated
from studies.common.characters import WINDOW, Characters, Sizes, corrected_splits, published_1a
from studies.common.comparison import (
    HEADS,
    Compared,
    compared,
    corrected_outcome,
    differences,
    gains,
    limits,
    parameters,
    passage_ppl,
    published_outcome,
    transformer,
)
from studies.common.settings import Settings
from studies.common.study import Job, Outcome
from studies.common.training import PublishedTraining, train_corrected, train_published
from studies.common.workers import run_arms

ARMS = ("standard", "repeated", "standard_2", "irt", "unrolled", "hrm_published", "hrm")
HRM_WIDTH = 48
"""Of the report's HRM, to come near the parameters of the others."""
PASSES = 2
PAIRS = (
    ("irt", "standard"),
    ("irt", "repeated"),
    ("irt", "standard_2"),
    ("irt", "unrolled"),
    ("unrolled", "standard"),
    ("repeated", "standard"),
    ("hrm_published", "standard"),
    ("hrm", "standard"),
    ("hrm", "hrm_published"),
    ("hrm", "irt"),
    ("hrm_published", "irt"),
)


class CorrectedTraining(Settings):
    """How long the corrected protocol trains."""

    updates: dict[str, int]
    """By size of the text."""
    look_every: int
    """Updates between two looks at the calibration text."""


def build(arm: str, vocab_size: int) -> Callable[[int], nn.Module]:
    """The model of an arm, as initialised in the report."""
    if arm.startswith("hrm"):
        variant = "v2" if arm == "hrm" else "v2_published"
        config = HierarchicalConfig(vocab_size, WINDOW, HRM_WIDTH, HEADS, 4 * HRM_WIDTH, variant, (1, 2))
        return lambda seed: HierarchicalLM(config)
    if arm in ("irt", "unrolled"):
        return lambda seed: IteratedLM(transformer(1, vocab_size))
    return lambda seed: transformer(_layers(arm), vocab_size)


def _layers(arm: str) -> int:
    return 2 if arm == "standard_2" else 1


def objective(arm: str) -> Objective:
    if arm == "unrolled":
        return from_logits(lambda model, tokens: unrolled(model, tokens, PASSES))
    if arm == "irt" or arm.startswith("hrm"):
        return segments_objective(PASSES)
    final = named("final", _layers(arm))
    return repeated(final, PASSES) if arm == "repeated" else final


def published(job: Job) -> Outcome:
    """Every arm as the report ran it, with one random seed."""
    data = published_1a(job.text, Sizes.of(job.shared["characters"]))
    how = PublishedTraining.of(job.settings["published"])
    jobs = [(data, arm, how, job.seeds[0]) for arm in job.arms]
    return published_outcome(dict(zip(job.arms, run_arms(published_arm, jobs, job.processes))), derived)


def corrected(job: Job) -> Outcome:
    """Every arm on every size of the text, at equal updates and at equal FLOPs."""
    sizes, how = Sizes.of(job.shared["characters"]), CorrectedTraining.of(job.settings["corrected"])
    texts = {size: corrected_splits(job.text, size, sizes) for size in sizes.names(job.text.corpus)}
    places = [(size, arm) for size in texts for arm in job.arms]
    jobs = [
        (texts[size], arm, how.updates[size], how.look_every, job.seeds, size == "20k")
        for size, arm in places
    ]
    results = run_arms(corrected_arm, jobs, job.processes)
    return corrected_outcome(dict(zip(places, results)), len(job.seeds), derived)


def published_arm(data: Characters, arm: str, how: PublishedTraining, seed: int) -> dict[str, float]:
    """Values of one arm as the report ran it."""
    run = train_published(
        build(arm, data.vocab_size),
        objective(arm),
        data,
        epochs=how.epochs,
        patience=how.patience,
        seed=seed,
    )
    values = run.values(arm) | {f"parameters.{arm}": parameters(run.ensemble)}
    if arm == "irt":
        values["pass_gain.irt"] = pass_gains(run.ensemble, data, "validation")[0]
    return values


def corrected_arm(
    data: Characters, arm: str, updates: int, look_every: int, seeds: tuple[int, ...], passage: bool
) -> Compared:
    """One arm on one size of text, all random seeds together; ``look_every`` is in updates, ``passage``:
    whether the calibration text is the passage of the report."""
    model = build(arm, data.vocab_size), objective(arm)
    within = limits(*model, data, updates, (build("standard", data.vocab_size), objective("standard")))
    run = train_corrected(*model, data, within, look_every=look_every // model[1].segments, seeds=seeds)
    more: list[dict[str, float]] = passage_ppl(run, within.updates) if passage else [{} for _ in seeds]
    result = compared(run, within)
    if arm == "irt":
        gained = pass_gains(run.ensemble, data, "test")
        more = [values | {"pass_gain": gain} for values, gain in zip(more, gained)]
    result.more = more
    return result


def pass_gains(ensemble: Ensemble, data: Characters, split: str) -> list[float]:
    """Nats by member by which the logits of the last pass are better than those of the first."""
    first, last = (
        mean_nll(ensemble, segments_objective(passes), *data.windows(split)) for passes in (1, PASSES)
    )
    return (first - last).tolist()


def derived(nll: dict[str, float]) -> dict[str, float]:
    """What follows from the losses of all arms."""
    out = differences(nll, PAIRS) | gains(nll, "standard")
    for suffix, hrm in (("", "hrm"), ("_published", "hrm_published")):
        if {"standard", "irt", hrm} <= set(nll):
            out[f"lead{suffix}.irt"] = min(nll["standard"], nll[hrm]) - nll["irt"]
            gained = nll["standard"] - nll["irt"], nll["standard"] - nll[hrm]
            out[f"half_of_hrm{suffix}.irt"] = gained[0] - gained[1] / 2
    return out
