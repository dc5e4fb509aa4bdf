"""Does progressive growth collapse, and does layer supervision help? Experiment 7 of character-systems.

    python -m studies progressive_growth --corpus sotu|wikitext|pangram

Published and corrected protocol: ``studies.common.growth_study``. Every stage trains all layers, on the loss
of the last exit (standard) or of all exits (LPT, layer-wise progressive training). Cut against the report,
which gave every stage up to 30 epochs and stopped early: corrected stages end after the updates of
study.yaml, on real text before the model has converged. On 500,000 characters only what grows (standard),
trains on or starts from scratch is trained.
"""

from __future__ import annotations

from offramp.systems.growth import schedule
from studies.common.growth_study import Experiment
from studies.common.growth_training import Arm
from studies.common.study import Job, Outcome

TARGET = 4
DECAY = 0.5
"""Of the learning rate, per layer downwards, in the arm with layer-wise rates."""


def _progressive(objective: str = "final", **changes: object) -> Arm:
    return Arm(schedule("progressive", TARGET, **changes), objective)


SCRATCH = {"scratch, standard": _progressive(start=TARGET), "scratch, lpt": _progressive("sum", start=TARGET)}
EXPERIMENT = Experiment(
    arms={
        "standard": _progressive(),
        "lpt": _progressive("sum"),
        "standard, identity": _progressive(new_layer="identity"),
        "standard, rates": _progressive(rate_decay=DECAY),
        "standard, last weights": _progressive(goes_on_from="last"),
        "no growth": Arm(schedule("no growth", TARGET)),
        **SCRATCH,
    },
    published_arms={
        "standard": _progressive(goes_on_from="last"),
        "lpt": _progressive("sum", goes_on_from="last"),
        "standard, identity": _progressive(new_layer="identity", goes_on_from="last"),
        "standard, rates": _progressive(rate_decay=DECAY, goes_on_from="last"),
        "no growth": Arm(schedule("no growth", TARGET, goes_on_from="last")),
        **SCRATCH,
    },
    fewer={
        "20k": [
            "standard",
            "lpt",
            "standard, identity",
            "standard, rates",
            "no growth",
            "scratch, standard",
            "scratch, lpt",
        ],
        "500k": ["standard", "no growth", "scratch, standard"],
        "pangram": ["standard", "standard, last weights", "no growth", "scratch, standard"],
    },
    reference="standard",
    differences=[
        ("standard", "standard_1"),
        ("standard", "no_growth"),
        ("standard", "scratch_standard"),
        ("standard_4", "standard_1"),
        ("lpt_4", "lpt_1"),
        ("lpt", "standard"),
        ("lpt", "scratch_lpt"),
        ("scratch_lpt", "scratch_standard"),
        ("standard_identity", "standard"),
        ("standard_rates", "standard"),
        ("standard_last_weights", "standard"),
    ],
    ratios=[
        ("times", "lpt_4", "lpt_1"),
        ("times", "standard_4", "standard_1"),
        ("times", "lpt", "scratch_lpt"),
        ("gain", "lpt", "standard"),
        ("gain", "scratch_lpt", "scratch_standard"),
    ],
    drawn=["standard", "lpt", "standard, last weights", "no growth", "scratch, standard", "scratch, lpt"],
)
ARMS = EXPERIMENT.names


def published(job: Job) -> Outcome:
    """As the report grew its models, on the pangram."""
    return EXPERIMENT.published(job)


def corrected(job: Job) -> Outcome:
    """From the best weights, at equal updates and at equal FLOPs."""
    return EXPERIMENT.corrected(job)
