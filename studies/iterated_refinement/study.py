"""Seed 001, experiment 3: does refining a state in two passes help?

    python -m studies.iterated_refinement.study --corpus sotu

Published: one-layer models on 20,000 characters, each until its best epoch. Iterated refinement (irt) and HRM then make two
updates per batch where the standard model makes one (F8), HRM's first layer never learns (F4, hrm_published), and both spend
twice the compute of the standard model when they are used.

Corrected: five seeds at equal updates, and at equal FLOPs of training. Controls: a standard model that updates twice per batch
too (repeated), one that costs as much as irt in use (standard_2), the two passes with one loss and the gradient through both
(unrolled), and HRM with its gradient mended (hrm). Against the seed's up to 30 epochs all arms have a fixed number of updates,
about as many as its best arms took; most would go on learning (see the curves). Writes
metrics/studies/iterated_refinement.<corpus>.json.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from offramp.systems.deep_supervision import segments_objective
from offramp.systems.hierarchical import HierarchicalConfig, HierarchicalLM
from offramp.systems.iterated import IteratedLM, unrolled
from offramp.systems.objectives import Objective, from_logits, named, repeated
from studies.common.workers import PUBLISHED_SEED, SEEDS, Outcome, both_protocols, study_main
from studies.common.characters import SIZES_OF, WINDOW, corrected, published_1a
from studies.common.comparison import (
    HEADS,
    Compared,
    compared,
    corrected_values,
    differences,
    gains,
    learning_curves,
    limits,
    parameters,
    published_values,
    transformer,
)
from studies.common.results import study_params
from studies.common.text import StudyText
from studies.common.training import train_corrected, train_published

STUDY = "iterated_refinement"
SETTINGS: dict[str, Any] = study_params(STUDY)
ARMS = ("standard", "repeated", "standard_2", "irt", "unrolled", "hrm_published", "hrm")
FLAWS = [
    "F4 the gradient never reaches the first layer of HRM version 2: it stays a random, fixed layer",
    "F8 iterated refinement and HRM make two updates per batch and run twice per use, the standard model once",
]
HRM_WIDTH = 48
"""Of the seed's HRM, to come near the parameters of the others."""
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


def build(arm: str, vocab_size: int) -> Callable[[int], nn.Module]:
    """The model of an arm, as initialised in the seed."""
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


def published_arm(text: StudyText, arm: str, settings: dict[str, Any]) -> dict[str, float]:
    """Values of one arm as the seed ran it."""
    data = published_1a(text)
    run = train_published(
        build(arm, data.vocab_size),
        objective(arm),
        data,
        settings["epochs"],
        settings["patience"],
        PUBLISHED_SEED,
    )
    return run.values(arm) | {f"parameters.{arm}": parameters(run.ensemble)}


def corrected_arm(
    text: StudyText, size: str, arm: str, settings: dict[str, Any], seeds: Sequence[int]
) -> Compared:
    """One arm on one size of text, all seeds together."""
    data, updates = corrected(text, size), settings["updates"][size]
    own = build(arm, data.vocab_size), objective(arm)
    within = limits(*own, data, updates, (build("standard", data.vocab_size), objective("standard")))
    return compared(
        train_corrected(*own, data, within, settings["look_every"] // own[1].segments, seeds), within
    )


def derived(nll: dict[str, float]) -> dict[str, float]:
    """What follows from the losses of all arms."""
    return differences(nll, PAIRS) | gains(nll, "standard")


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
            (text, size, arm, settings["corrected"], seeds) for size in SIZES_OF[text.corpus] for arm in arms
        ]
    published, found = both_protocols(published_arm, published_jobs, corrected_arm, jobs)
    if published_jobs:
        outcome.published = published_values(published, [arm for _, arm, _ in published_jobs], derived)
    if jobs:
        by_size: dict[str, dict[str, Compared]] = {size: {} for size in SIZES_OF[text.corpus]}
        for (_, size, arm, *_), one in zip(jobs, found):
            by_size[size][arm] = one
        outcome.corrected = corrected_values(by_size, len(seeds), derived)
        outcome.figures["learning_curves"] = learning_curves(by_size)
    return outcome


main = study_main(STUDY, __doc__.splitlines()[0], ARMS, FLAWS, run)

if __name__ == "__main__":
    main()
