"""Does greedy growth collapse, which trains one layer at a time? Experiment 6 of the report
character-systems.

    python -m studies greedy_growth --corpus sotu|wikitext|pangram

Published and corrected protocol: ``studies.common.growth_study``. The report's greedy growth also never
trained its embedding: corrected, that is an arm of its own. Cut against the report, which gave every stage up
to 30 epochs and stopped early: corrected stages end after the updates of study.yaml, on real text before the
model has converged. On 500,000 characters only what grows, trains on or starts from scratch is trained.
"""

from __future__ import annotations

from offramp.systems.growth import schedule
from studies.common.growth_study import Experiment
from studies.common.growth_training import Arm
from studies.common.study import Job, Outcome

TARGET = 4
FINE_TUNE = 0.1
"""Learning rate of fine-tuning, relative to that of the stages."""
MISTAKEN = "greedy, embedding never trained"

SCRATCH = Arm(schedule("progressive", TARGET, start=TARGET))
EXPERIMENT = Experiment(
    arms={
        "greedy": Arm(schedule("greedy", TARGET, fine_tune=FINE_TUNE)),
        "greedy, identity": Arm(schedule("greedy", TARGET, new_layer="identity")),
        "greedy, embedding never trained": Arm(schedule(MISTAKEN, TARGET)),
        "greedy, last weights": Arm(schedule("greedy", TARGET, goes_on_from="last")),
        "no growth": Arm(schedule("no growth", TARGET)),
        "scratch": SCRATCH,
    },
    published_arms={
        "greedy": Arm(schedule(MISTAKEN, TARGET, fine_tune=FINE_TUNE, goes_on_from="last")),
        "greedy, identity": Arm(schedule(MISTAKEN, TARGET, new_layer="identity", goes_on_from="last")),
        "no growth": Arm(schedule("no growth", TARGET, goes_on_from="last")),
        "scratch": SCRATCH,
    },
    fewer={
        "20k": ["greedy", "greedy, identity", "greedy, embedding never trained", "no growth", "scratch"],
        "500k": ["greedy", "no growth", "scratch"],
        "pangram": [
            "greedy",
            "greedy, embedding never trained",
            "greedy, last weights",
            "no growth",
            "scratch",
        ],
    },
    reference="greedy",
    differences=[
        ("greedy", "greedy_1"),
        ("greedy", "no_growth"),
        ("greedy", "scratch"),
        ("greedy_2", "greedy_1"),
        ("greedy_3", "greedy_2"),
        ("greedy_4", "greedy_3"),
        ("greedy_4", "greedy_1"),
        ("greedy_fine_tuned", "greedy"),
        ("greedy_identity", "greedy"),
        ("greedy_embedding_never_trained", "greedy"),
        ("greedy_last_weights", "greedy"),
    ],
    ratios=[
        ("times", "greedy_2", "greedy_1"),
        ("times", "greedy_3", "greedy_2"),
        ("times", "greedy_4", "greedy_3"),
        ("times", "greedy", "scratch"),
        ("rise", "greedy_1", "scratch"),
        ("rise", "no_growth", "scratch"),
    ],
    drawn=["greedy", "greedy, embedding never trained", "greedy, last weights", "no growth", "scratch"],
)
ARMS = EXPERIMENT.names


def published(job: Job) -> Outcome:
    """As the report grew its models, on the pangram."""
    return EXPERIMENT.published(job)


def corrected(job: Job) -> Outcome:
    """From the best weights, at equal updates and at equal FLOPs."""
    return EXPERIMENT.corrected(job)
