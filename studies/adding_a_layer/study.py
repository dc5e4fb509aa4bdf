"""Does adding a layer destroy a trained model? Experiment 5 of the report character-systems.

    python -m studies adding_a_layer --corpus sotu|wikitext|pangram

Published and corrected protocol: ``studies.common.growth_study``. Cut against the report, which gave every
stage up to 30 epochs and stopped early: corrected stages end after the updates of study.yaml, on real text
before the model has converged. On 500,000 characters only what grows (full append), trains on or starts from
scratch is trained.
"""

from __future__ import annotations

from offramp.systems.growth import schedule
from studies.common.growth_study import Experiment
from studies.common.growth_training import Arm
from studies.common.study import Job, Outcome

TARGET, BASE = 4, 3
DECAY = 0.5
"""Of the learning rate, per layer downwards, in the arms with layer-wise rates."""


def _from_base(name: str, **changes: object) -> Arm:
    return Arm(schedule(name, TARGET, start=BASE, **changes))


SCRATCH = Arm(schedule("full append", TARGET, start=TARGET))
EXPERIMENT = Experiment(
    arms={
        "frozen append": _from_base("frozen append"),
        "full append": _from_base("full append"),
        "full append, identity": _from_base("full append", new_layer="identity"),
        "full append, rates": _from_base("full append", rate_decay=DECAY),
        "full append, last weights": _from_base("full append", goes_on_from="last"),
        "no growth": _from_base("no growth"),
        "no growth, last weights": _from_base("no growth", goes_on_from="last"),
        "scratch": SCRATCH,
    },
    published_arms={
        "frozen append": _from_base("frozen append", goes_on_from="last"),
        "full append": _from_base("full append", goes_on_from="last"),
        "full append, identity": _from_base("full append", new_layer="identity", goes_on_from="last"),
        "full append, rates": _from_base("full append", rate_decay=DECAY, goes_on_from="last"),
        "no growth": _from_base("no growth", goes_on_from="last"),
        "scratch": SCRATCH,
    },
    fewer={
        "20k": [
            "frozen append",
            "full append",
            "full append, identity",
            "full append, rates",
            "no growth",
            "scratch",
        ],
        "500k": ["full append", "no growth", "scratch"],
        "pangram": [
            "frozen append",
            "full append",
            "full append, last weights",
            "no growth",
            "no growth, last weights",
            "scratch",
        ],
    },
    reference="full append",
    differences=[
        ("full_append", "full_append_1"),
        ("full_append", "no_growth"),
        ("full_append", "scratch"),
        ("scratch", "full_append_1"),
        ("frozen_append", "frozen_append_1"),
        ("frozen_append", "full_append"),
        ("full_append_at_once", "full_append_1"),
        ("full_append_identity", "full_append"),
        ("full_append_rates", "full_append"),
        ("full_append_last_weights", "full_append"),
        ("full_append_last_weights", "no_growth_last_weights"),
    ],
    ratios=[
        ("rise", "full_append", "full_append_1"),
        ("rise", "frozen_append", "frozen_append_1"),
        ("rise", "frozen_append", "full_append"),
    ],
    drawn=[
        "full append",
        "frozen append",
        "no growth",
        "scratch",
        "full append, last weights",
        "no growth, last weights",
    ],
)
ARMS = EXPERIMENT.names


def published(job: Job) -> Outcome:
    """As the report grew its models, on the pangram."""
    return EXPERIMENT.published(job)


def corrected(job: Job) -> Outcome:
    """From the best weights, at equal updates and at equal FLOPs."""
    return EXPERIMENT.corrected(job)
