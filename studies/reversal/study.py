"""Seed 000: does a small language model that learnt "A is B" know "B is A"?

    python -m studies.reversal.study --corpus sotu

The seed trained 33 facts forwards, scored backward sentences that name their subject twice (H6), and took the difference for a
reversal curse. Here every fact is a well-formed sentence in both directions (reversal_pairs.tsv); a model learns half of them among
the corpus' windows, and the other half, which it never sees, is the control; odd seeds have the halves exchanged. Arms:

    ordinary      next tokens, facts forwards
    selective     the corrected selective model, facts forwards
    both_ways     next tokens, facts in both directions: what the test says where there is nothing to find
    no_facts      next tokens, no facts at all: what it says of sentences alone

Published: the seed's model and recipe on all facts. Corrected: 3 seeds, paired. NLL in nats per token of the sentence, and of its
answer alone ("answer"); ``repeated`` is the published form, under which any model looks as if it could not reverse. ``associated`` is
by how much the right answer is likelier than those of other trained facts of the same relation: the fact, not its words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from offramp.systems.selective_output.model import SelectiveLM
from studies.common.workers import Outcome, run_arms, study_main
from studies.common.results import over_seeds, study_params
from studies.common.selective import (
    END,
    PAIRS,
    SETTINGS,
    published_pairs,
    train_corrected,
    train_published,
)
from studies.common.subwords import Subwords, subwords
from studies.common.text import StudyText
from studies.measures.reversal import (
    DIRECTIONS,
    Pair,
    Scored,
    crossed,
    read_pairs,
    reversal,
    reversal_interval,
    score,
)

STUDY = "reversal"
OPTIONS: dict[str, Any] = study_params(STUDY)
FLAWS = [
    "H1 targets are carried over while the input goes on: after two skips they are among the inputs",
    "H2 labels are shifted twice: with no skip the model learns to say the token after next",
    "H5 the projection of skipped steps is never trained, and padding is in the loss",
    "H6 backward sentences name their subject twice, and there are no facts that were not trained on",
]
ARMS = {
    "ordinary": "ordinary",
    "selective": "straight_through",
    "both_ways": "ordinary",
    "no_facts": "ordinary",
}
"""Arms and how their models are trained."""
PUBLISHED_ARMS = {"ordinary": "ordinary", "selective": "carried"}


def scored(
    model: SelectiveLM,
    pairs: Sequence[Pair],
    data: Subwords,
    start: int | None,
    directions: Sequence[str] = DIRECTIONS,
) -> dict[str, Scored]:
    """Every fact in every direction."""

    def token_nll(tokens: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(model.head(model.states(tokens)).transpose(1, 2), targets, reduction="none")

    return {direction: score(pairs, direction, data.encode, start, token_nll) for direction in directions}


def associated(
    model: SelectiveLM, pairs: Sequence[Pair], data: Subwords, start: int | None, arm: str
) -> dict[str, float]:
    """How much likelier the answers of trained facts are than those of others, nats per token, forwards and backwards."""
    right, wrong = (scored(model, some, data, start, ("forward", "backward")) for some in crossed(pairs))
    return {
        f"associated.{direction}.{arm}": float(
            wrong[direction].answer.mean() - right[direction].answer.mean()
        )
        for direction in right
    }


# Published ------------------------------------------------------------------------------------------------------------


def published_arm(data: Subwords, arm: str, settings: dict[str, Any]) -> dict[str, float]:
    """Figures of a model trained by the seed's recipe on all of its facts; ``ppl`` as the seed's, exp of the mean over sentences."""
    pairs, count = read_pairs(PAIRS), len(published_pairs(settings))
    model = train_published(data, PUBLISHED_ARMS[arm], settings).model
    found = scored(model, pairs, data, None)
    values = figures_of(found, np.arange(len(pairs)) < count, arm) | associated(
        model, pairs[:count], data, None, arm
    )
    if arm != "selective":
        return values
    ppl = {direction: math.exp(one.sentence[:count].mean()) for direction, one in found.items()}
    return (
        values
        | {f"ppl.{direction}": value for direction, value in ppl.items()}
        | {
            "ppl_gap": ppl["repeated"] - ppl["forward"],
            "ppl_gap_well_formed": ppl["backward"] - ppl["forward"],
            "nll_gap": math.log(ppl["repeated"] / ppl["forward"]),
            "nll_gap_well_formed": math.log(ppl["backward"] / ppl["forward"]),
        }
    )


# Corrected ------------------------------------------------------------------------------------------------------------


def trained_half(count: int, seed: int) -> np.ndarray:
    """Which facts (P,) are trained on: every other couple of rows, the others with an odd seed; couples mix kinds of facts."""
    return (np.arange(count) // 2 + seed) % 2 == 0


def corrected_arm(
    data: Subwords, arm: str, seed: int, settings: dict[str, Any]
) -> tuple[dict[str, float], dict[str, Any]]:
    """Values of one arm and seed, and its interval over facts."""
    pairs = read_pairs(PAIRS)
    trained = trained_half(len(pairs), seed)
    directions = {"both_ways": ("forward", "backward"), "no_facts": ()}.get(arm, ("forward",))
    facts = [
        pair.sentence(direction) for pair, chosen in zip(pairs, trained) if chosen for direction in directions
    ]
    model = train_corrected(data, ARMS[arm], seed, settings, facts, OPTIONS["share"]).model
    found = scored(model, pairs, data, END)
    values = figures_of(found, trained, arm)
    values |= associated(model, [pair for pair, chosen in zip(pairs, trained) if chosen], data, END, arm)
    ppl = {direction: math.exp(one.sentence[trained].mean()) for direction, one in found.items()}
    values |= {f"ppl.{direction}.{arm}": value for direction, value in ppl.items()} | {
        f"ppl_gap.{arm}": ppl["repeated"] - ppl["forward"],
        f"ppl_gap_well_formed.{arm}": ppl["backward"] - ppl["forward"],
    }
    forward, backward = found["forward"].sentence, found["backward"].sentence
    between = reversal_interval(
        (forward[trained], backward[trained]), (forward[~trained], backward[~trained])
    )
    return values, {
        "seed": seed,
        "arm": arm,
        "reversal": [values[f"reversal.{arm}"], *(between or (None, None))],
    }


def figures_of(found: Mapping[str, Scored], trained: np.ndarray, arm: str) -> dict[str, float]:
    """``reversal`` and what it is made of, of sentences, of answers alone, and of the published form."""
    values = {}
    for prefix, part, direction in (
        ("", "sentence", "backward"),
        ("answer.", "answer", "backward"),
        ("repeated.", "sentence", "repeated"),
    ):
        both = getattr(found["forward"], part), getattr(found[direction], part)
        one = reversal(*(tuple(nll[chosen] for nll in both) for chosen in (trained, ~trained)))
        values |= {f"{prefix}{name}.{arm}": value for name, value in one.items()}
    return values


def comparisons(values: Mapping[str, float]) -> dict[str, float]:
    """What follows from several arms of one seed."""
    out = {}
    for one, other in (("selective", "ordinary"), ("ordinary", "both_ways")):
        if {f"reversal.{one}", f"reversal.{other}"} <= set(values):
            out[f"diff.{one}_minus_{other}"] = values[f"reversal.{one}"] - values[f"reversal.{other}"]
    return out


# Both -----------------------------------------------------------------------------------------------------------------


def run(text: StudyText, protocol: str, arms: Sequence[str], settings: dict[str, Any] = SETTINGS) -> Outcome:
    """Both protocols on one text; text of one's own has the corrected one alone."""
    outcome, data = Outcome(), subwords(text, settings["vocab_size"], settings["held_out"])
    if protocol in ("published", "both") and text.corpus != "own":
        found = run_arms(published_arm, [(data, arm, settings) for arm in arms if arm in PUBLISHED_ARMS])
        values = {name: value for one in found for name, value in one.items()}
        outcome.published = values | comparisons(values)
    if protocol in ("corrected", "both"):
        seeds = settings["corrected"]["seeds"]
        jobs = [(data, arm, seed, settings) for arm in arms for seed in seeds]
        made = {(arm, seed): one for (_, arm, seed, _), one in zip(jobs, run_arms(corrected_arm, jobs))}
        outcome.corrected = []
        for seed in seeds:
            values = {name: value for arm in arms for name, value in made[arm, seed][0].items()}
            outcome.corrected.append(values | comparisons(values))
        outcome.figures["over_facts"] = {
            "title": "Reversal by arm and seed",
            "columns": ["arm", "seed", "reversal"],
            "rows": [one for _, one in made.values()],
            "note": "In nats per token, with a 95 % bootstrap interval over facts.",
        }
        outcome.figures["gain"] = gain_figure(outcome.corrected, arms)
    return outcome


def gain_figure(rows: Sequence[Mapping[str, float]], arms: Sequence[str]) -> dict[str, Any]:
    """What was learnt about trained facts, beyond control facts, forwards and backwards."""
    kinds = {
        "learnt": "forwards",
        "learnt_backward": "backwards",
        "repeated.learnt_backward": "backwards, subject repeated",
    }
    found = over_seeds(list(rows))
    return {
        "title": "How much likelier trained facts are than facts never seen",
        "note": "Nats per token, 95 % t interval over seeds.",
        "columns": ["arm", "sentence", "gain"],
        "rows": [
            [arm, kind, list(found[f"{name}.{arm}"].values())] for arm in arms for name, kind in kinds.items()
        ],
        "plot": {"x": "gain", "y": "arm", "group": "sentence"},
    }


main = study_main(STUDY, __doc__.splitlines()[0], list(ARMS), FLAWS, run)

if __name__ == "__main__":
    from studies.reversal.study import main  # so that worker processes find what is sent to them

    main()
