"""Seed 001, experiment 5: does adding a layer destroy a trained model?

    python -m studies.adding_a_layer.study --corpus sotu|wikitext|pangram

Published (--corpus pangram): as in the seed, where the text was a pangram and every stage went on from overfitted weights.
Corrected: real text, five seeds, stages of equal numbers of updates that begin with the best weights, the same number of
updates in all for every arm and, apart from that, equal FLOPs; and the same on the pangram, the control of the text.
Cut against the seed, which gave every stage up to 30 epochs and stopped early: corrected stages end after the updates of
params.yaml, on real text before the model has converged.
On 500,000 characters only what grows (full append), trains on or starts from scratch is trained.
Writes metrics/studies/adding_a_layer.<corpus>.json.
"""

from __future__ import annotations

from offramp.systems.growth import schedule
from studies.common.growing import Arm
from studies.common.growth_study import FLAWS, Experiment

TARGET, BASE = 4, 3
DECAY = 0.5
"""Of the learning rate, per layer downwards, in the arms with layer-wise rates."""


def _from_base(name: str, **changes: object) -> Arm:
    return Arm(schedule(name, TARGET, start=BASE, **changes))


SCRATCH = Arm(schedule("full append", TARGET, start=TARGET))
EXPERIMENT = Experiment(
    name="adding_a_layer",
    summary="Experiment 5 of seed 001: does adding a layer destroy a trained model?",
    flaws=FLAWS,
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
    published={
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
        ("frozen_append", "frozen_append_1"),
        ("frozen_append", "full_append"),
        ("full_append_at_once", "full_append_1"),
        ("full_append_identity", "full_append"),
        ("full_append_rates", "full_append"),
        ("full_append_last_weights", "full_append"),
        ("full_append_last_weights", "no_growth_last_weights"),
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
main = EXPERIMENT.main()

if __name__ == "__main__":
    main()
