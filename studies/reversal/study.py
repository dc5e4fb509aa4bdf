"""Does a small language model that learnt "A is B" know "B is A"? (Report selective-output, the reversal
test.)

The report trained 33 facts forwards, scored backward sentences that name their subject twice, and took the
difference for a reversal curse. Here every fact is a well-formed sentence in both directions; a model
learns half of the facts among the corpus' windows, and the other half, which it never sees, is the control;
with odd random seeds the halves change places. Arms:

    ordinary      next tokens, facts forwards
    selective     the corrected selective model, facts forwards
    both_ways     next tokens, facts in both directions: what the test says where there is nothing to find
    no_facts      next tokens, no facts at all: what it says of sentences alone

Published: the report's model and recipe on all facts, at a small size (64 wide instead of 512). Corrected:
three random seeds, paired. NLL is in nats per token of the sentence, and of its answer alone ("answer");
``repeated`` is the published form, under which any model looks as if it could not reverse. ``associated`` is
by how much the right answer is likelier than those of other trained facts of the same relation: the fact, not
its words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from offramp.systems.selective_output.model import SelectiveLM
from studies.common.results import over_seeds
from studies.common.selective_models.facts import DIRECTIONS, Fact, read_facts
from studies.common.selective_models.training import (
    END,
    SelectiveModels,
    published_facts,
    train_corrected,
    train_published,
)
from studies.common.settings import Settings
from studies.common.study import Job, Outcome
from studies.common.subwords import Subwords, subwords
from studies.common.workers import run_arms
from studies.reversal.scores import FactScores, crossed, reversal, reversal_interval, score

ARMS = {
    "ordinary": "ordinary",
    "selective": "straight_through",
    "both_ways": "ordinary",
    "no_facts": "ordinary",
}
"""Arms and how their models are trained."""
PUBLISHED_ARMS = {"ordinary": "ordinary", "selective": "carried"}


class Reversal(Settings):
    """The settings of this study."""

    share: float
    """Of the training windows that hold facts."""


def scores_of(
    model: SelectiveLM,
    facts: Sequence[Fact],
    data: Subwords,
    start: int | None,
    directions: Sequence[str] = DIRECTIONS,
) -> dict[str, FactScores]:
    """Every fact in every direction."""

    def token_nll(tokens: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(model.head(model.states(tokens)).transpose(1, 2), targets, reduction="none")

    return {direction: score(facts, direction, data.encode, start, token_nll) for direction in directions}


def associated(
    model: SelectiveLM, facts: Sequence[Fact], data: Subwords, start: int | None, arm: str
) -> dict[str, float]:
    """How much likelier answers of trained facts are than those of others, nats per token, forwards and
    backwards."""
    right, wrong = (scores_of(model, some, data, start, ("forward", "backward")) for some in crossed(facts))
    return {
        f"associated.{direction}.{arm}": float(
            wrong[direction].answer.mean() - right[direction].answer.mean()
        )
        for direction in right
    }


# Published --------------------------------------------------------------------------------------------------


def published(job: Job) -> Outcome:
    """The report's recipe."""
    models, data = _given(job)
    jobs = [(data, arm, job.seeds[0], models) for arm in job.arms if arm in PUBLISHED_ARMS]
    if not jobs:
        return Outcome([])
    of_arms = run_arms(published_arm, jobs, job.processes)
    values = {name: value for of_arm in of_arms for name, value in of_arm.items()}
    return Outcome([values | comparisons(values)])


def published_arm(data: Subwords, arm: str, seed: int, models: SelectiveModels) -> dict[str, float]:
    """Figures of a model trained by the report's recipe on all of its facts.

    ``ppl`` is the report's: exp of the mean over sentences.
    """
    facts, count = read_facts(), len(published_facts(models))
    model = train_published(data, PUBLISHED_ARMS[arm], seed, models).model
    scores = scores_of(model, facts, data, None)
    values = figures_of(scores, np.arange(len(facts)) < count, arm)
    values |= associated(model, facts[:count], data, None, arm)
    if arm != "selective":
        return values
    ppl = {direction: math.exp(given.sentence[:count].mean()) for direction, given in scores.items()}
    values |= {f"ppl.{direction}": value for direction, value in ppl.items()}
    return values | {
        "ppl_gap": ppl["repeated"] - ppl["forward"],
        "ppl_gap_well_formed": ppl["backward"] - ppl["forward"],
        "nll_gap": math.log(ppl["repeated"] / ppl["forward"]),
        "nll_gap_well_formed": math.log(ppl["backward"] / ppl["forward"]),
    }


# Corrected --------------------------------------------------------------------------------------------------


def corrected(job: Job) -> Outcome:
    """Half of the facts trained on, the other half as the control."""
    models, data = _given(job)
    settings = Reversal.of(job.settings)
    jobs = [(data, arm, seed, models, settings.share) for arm in job.arms for seed in job.seeds]
    trained = run_arms(corrected_arm, jobs, job.processes)
    measured = {(arm, seed): one for (_, arm, seed, *_), one in zip(jobs, trained)}
    rows = []
    for seed in job.seeds:
        values = {name: value for arm in job.arms for name, value in measured[arm, seed][0].items()}
        rows.append(values | comparisons(values))
    table = {
        "title": "Reversal by arm and seed",
        "columns": ["arm", "seed", "reversal"],
        "rows": [over_facts for _, over_facts in measured.values()],
        "note": "In nats per token, with a 95 % bootstrap interval over facts.",
    }
    figures = {"over_facts": table}
    if len(rows) > 1:
        figures["gain"] = gain_figure(rows, job.arms)
    return Outcome(rows, figures)


def trained_half(count: int, seed: int) -> np.ndarray:
    """Which facts (P,) are trained on: every other couple of rows, and the others with an odd seed.

    Couples, because kinds of facts take turns among the rows: so each half has all of them.
    """
    return (np.arange(count) // 2 + seed) % 2 == 0


def corrected_arm(
    data: Subwords, arm: str, seed: int, models: SelectiveModels, share: float
) -> tuple[dict[str, float], dict[str, Any]]:
    """Values of one arm and random seed, and its interval over facts."""
    facts = read_facts()
    trained = trained_half(len(facts), seed)
    directions = {"both_ways": ("forward", "backward"), "no_facts": ()}.get(arm, ("forward",))
    known = [fact for fact, chosen in zip(facts, trained) if chosen]
    sentences = [fact.sentence(direction) for fact in known for direction in directions]
    model = train_corrected(data, ARMS[arm], seed, models, sentences, share).model
    scores = scores_of(model, facts, data, END)
    values = figures_of(scores, trained, arm)
    values |= associated(model, known, data, END, arm)
    ppl = {direction: math.exp(given.sentence[trained].mean()) for direction, given in scores.items()}
    values |= {f"ppl.{direction}.{arm}": value for direction, value in ppl.items()} | {
        f"ppl_gap.{arm}": ppl["repeated"] - ppl["forward"],
        f"ppl_gap_well_formed.{arm}": ppl["backward"] - ppl["forward"],
    }
    forward, backward = scores["forward"].sentence, scores["backward"].sentence
    between = reversal_interval(
        (forward[trained], backward[trained]), (forward[~trained], backward[~trained])
    )
    return values, {
        "seed": seed,
        "arm": arm,
        "reversal": [values[f"reversal.{arm}"], *(between or (None, None))],
    }


# Both -------------------------------------------------------------------------------------------------------


def _given(job: Job) -> tuple[SelectiveModels, Subwords]:
    """Settings of the models, and the text as sub-words."""
    models = SelectiveModels.of(job.shared["selective_models"])
    return models, subwords(job.text, models.vocab_size, models.held_out, models.documents)


def figures_of(scores: Mapping[str, FactScores], trained: np.ndarray, arm: str) -> dict[str, float]:
    """``reversal`` and what it is made of, of sentences, of answers alone, and of the published form."""
    values = {}
    for prefix, part, direction in (
        ("", "sentence", "backward"),
        ("answer.", "answer", "backward"),
        ("repeated.", "sentence", "repeated"),
    ):
        forward, other = getattr(scores["forward"], part), getattr(scores[direction], part)
        parts = reversal(*((forward[chosen], other[chosen]) for chosen in (trained, ~trained)))
        values |= {f"{prefix}{name}.{arm}": value for name, value in parts.items()}
    return values


def comparisons(values: Mapping[str, float]) -> dict[str, float]:
    """What follows from several arms of one random seed."""
    return {
        f"diff.{one}_minus_{other}": values[f"reversal.{one}"] - values[f"reversal.{other}"]
        for one, other in (("selective", "ordinary"), ("ordinary", "both_ways"))
        if {f"reversal.{one}", f"reversal.{other}"} <= set(values)
    }


def gain_figure(rows: Sequence[Mapping[str, float]], arms: Sequence[str]) -> dict[str, Any]:
    """What was learnt about trained facts, beyond control facts, forwards and backwards."""
    kinds = {
        "learnt": "forwards",
        "learnt_backward": "backwards",
        "repeated.learnt_backward": "backwards, subject repeated",
    }
    gains = over_seeds(list(rows))
    return {
        "title": "How much likelier trained facts are than facts never seen",
        "note": "Nats per token, 95 % t interval over seeds.",
        "columns": ["arm", "sentence", "gain"],
        "rows": [
            [arm, kind, list(gains[f"{name}.{arm}"].values())] for arm in arms for name, kind in kinds.items()
        ],
        "plot": {"x": "gain", "y": "arm", "group": "sentence"},
    }
