"""Should every layer of a context block see the token, and is effective rank the reason? (Report
context-vectors, section 1.)

The report found lower perplexity and a higher effective rank where every layer sees the token, and took the
rank for a by-product. It compared two runs that differ in almost everything: text, head, weight of diversity,
learning rate, batch and patience. They are rerun as published as all_334 and first; the fair pair under its
own protocol is all and first, and the same without diversity (w0) tell what the rank alone does there.
Corrected, all arms share text, protocol and random seeds:

    all, first                      the token at every layer, or at the first alone with falling widths
    all_w0 .. first_w95             other weights of diversity in phase 1: what moves the effective rank
    all_untrained, first_untrained  no phase 1: contexts of a block as drawn
    all_token_only                  contexts of the token alone, nothing before it
    all_none                        contexts of zeros: the token block reads the token and nothing else

If rank is a cause, raising it by the weight lowers the loss (slope, in nats per unit of ER / D); if it is a
by-product, losses and ranks agree across arms but not there. Trainings have equal updates; patience is a rule
for their looks. Cut against the report: 48 wide instead of 768, a vocabulary of 1,024 instead of GPT-2's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from offramp.systems.context_vectors.training import find_contexts
from studies.common.comparison import differences
from studies.common.context_models import (
    ContextModels,
    ContextText,
    PublishedContexts,
    build,
    context_text,
    contexts_of,
    final,
    published_values,
    read_corrected,
)
from studies.common.effective_rank import nulls, rank_share
from studies.common.results import over_seeds
from studies.common.settings import Settings
from studies.common.study import Job, Outcome
from studies.common.workers import run_arms


@dataclass(frozen=True)
class Arm:
    """What one corrected model is."""

    token_input: str
    weight: float | None = None
    """Of diversity in phase 1; None for the weight that all studies share."""
    contexts: str = "sequential"
    trained: bool = True


TOKEN_INPUTS = ("all", "first")
WEIGHTS = {"w0": 0.0, "w80": 0.8, "w95": 0.95}
CORRECTED_ARMS = {
    **{token_input: Arm(token_input) for token_input in TOKEN_INPUTS},
    **{
        f"{token_input}_{name}": Arm(token_input, weight)
        for token_input in TOKEN_INPUTS
        for name, weight in WEIGHTS.items()
    },
    **{f"{token_input}_untrained": Arm(token_input, trained=False) for token_input in TOKEN_INPUTS},
    "all_token_only": Arm("all", contexts="token_only"),
    "all_none": Arm("all", contexts="none", trained=False),
}
PUBLISHED_ARMS = ("all_334", "all", "first", "all_w0", "first_w0")
ARMS = (*CORRECTED_ARMS, "all_334")
SWEPT = {
    token_input: [token_input, *(f"{token_input}_{name}" for name in WEIGHTS)] for token_input in TOKEN_INPUTS
}
"""Arms that differ in nothing but the weight of diversity."""
PUBLISHED_SWEPT = {token_input: [token_input, f"{token_input}_w0"] for token_input in TOKEN_INPUTS}
"""The same under the published protocol."""
RANKED = [name for name, arm in CORRECTED_ARMS.items() if arm.contexts == "sequential"]
"""Arms whose contexts have a past, and hence a rank that could matter."""
PAIRS = (
    ("all", "first"),
    ("all", "all_untrained"),
    ("first", "first_untrained"),
    ("all", "all_none"),
    ("first", "all_none"),
    ("all", "all_token_only"),
    ("all_untrained", "all_none"),
    ("all_w95", "all_w0"),
    ("first_w95", "first_w0"),
    ("all_untrained", "first_untrained"),
    ("all_w0", "first_w0"),
    ("all_w95", "first_w95"),
)
RANKED_PAIRS = (("all", "first"), ("all", "all_untrained"), ("all_w95", "all_w0"), ("first_w95", "first_w0"))
PATIENCES = (1, 3)


class All334(Settings):
    """The report's run all_334, where it differs from its other one."""

    tokens: int
    head: str
    patience: int
    fixed_point: dict[str, int | float]
    """Changes of phase 1."""
    reading: dict[str, int | float]
    """Changes of phase 2."""


class PublishedSizes(Settings):
    """Of the published protocol."""

    tokens: int
    all_334: All334


class CorrectedSizes(Settings):
    """Of the corrected protocol."""

    pieces: int
    updates: int
    looks: int


class ContextInputs(Settings):
    """The settings of this study."""

    published: PublishedSizes
    corrected: CorrectedSizes


# Published --------------------------------------------------------------------------------------------------


def published(job: Job) -> Outcome:
    """The report's two runs, the one that makes a fair pair, and that pair without diversity."""
    settings, models, text = _given(job)
    arms = [arm for arm in job.arms if arm in PUBLISHED_ARMS]
    if not arms:
        return Outcome([])
    jobs = [(text, arm, job.seeds[0], models, settings.published) for arm in arms]
    of_arms = run_arms(published_arm, jobs, job.processes)
    values = {name: value for of_arm in of_arms for name, value in of_arm.items()}
    return Outcome([values | published_differences(values)])


def published_arm(
    text: ContextText, arm: str, seed: int, models: ContextModels, sizes: PublishedSizes
) -> dict[str, float]:
    """Values of one arm as the report ran it."""
    how, tokens, head = models.published, sizes.tokens, "zero"
    token_input, _, weight = arm.partition("_")
    if weight in WEIGHTS:
        fixed_point = replace(how.fixed_point, weight=WEIGHTS[weight])
        how = how.model_copy(update={"fixed_point": fixed_point})
    elif arm == "all_334":
        run = sizes.all_334
        tokens, head = run.tokens, run.head
        how = PublishedContexts(
            fixed_point=replace(how.fixed_point, **run.fixed_point),
            reading=replace(how.reading, **run.reading),
            epochs=how.epochs,
            patience=run.patience,
        )
    values = published_values(text, token_input, tokens, models, how, seed, head)
    return {f"{name}.{arm}": value for name, value in values.items()}


def published_differences(values: dict[str, float]) -> dict[str, float]:
    """What follows from the arms that there are."""
    nll = {arm: math.log(values[f"ppl.{arm}"]) for arm in PUBLISHED_ARMS if f"ppl.{arm}" in values}
    rank, accuracy = ({arm: values[f"{name}.{arm}"] for arm in nll} for name in ("rank", "accuracy"))
    out = differences(nll, [("all_334", "first"), ("all", "first"), ("all_334", "all")])
    for one in ("all_334", "all"):
        if {one, "first"} <= set(nll):
            out[f"rank_diff.{one}_minus_first"] = rank[one] - rank["first"]
            out |= against_first(nll, accuracy, one)
    if {"all_334", "first"} <= set(nll):  # what the report concluded from
        out["slope.between"] = out["diff.all_334_minus_first"] / out["rank_diff.all_334_minus_first"]
    return out | slopes(nll, rank, PUBLISHED_SWEPT)


# Corrected --------------------------------------------------------------------------------------------------


def corrected(job: Job) -> Outcome:
    """All arms on the same text, by the same protocol."""
    settings, models, text = _given(job)
    arms = [arm for arm in job.arms if arm in CORRECTED_ARMS]
    if not arms:
        return Outcome([])
    jobs = [(text, arm, seed, models, settings.corrected) for seed in job.seeds for arm in arms]
    values = dict(
        zip([(arm, seed) for _, arm, seed, *_ in jobs], run_arms(corrected_arm, jobs, job.processes))
    )
    rows = [corrected_values({arm: values[arm, seed] for arm in arms}) for seed in job.seeds]
    return Outcome(rows, {"rank": rank_figure(rows, arms)} if len(rows) > 1 else {})


def corrected_arm(
    text: ContextText, arm: str, seed: int, models: ContextModels, sizes: CorrectedSizes
) -> dict[str, float]:
    """One arm of one random seed: losses in nats and shares, names without the arm."""
    chosen, stream = CORRECTED_ARMS[arm], text.drawn(sizes.pieces, seed)
    model = build(text, chosen.token_input, seed, models)
    out: dict[str, float] = {"parameters": sum(parameter.numel() for parameter in model.parameters())}
    if chosen.trained:
        how = models.corrected.fixed_point
        if chosen.weight is not None:
            how = replace(how, weight=chosen.weight)
        out["iterations"] = find_contexts(model, stream.tokens, stream.begins, how, seed).iterations
    test = text.held_out("test")
    if chosen.contexts != "none":
        contexts = final(contexts_of(model, test, chosen.contexts))
        out |= {"rank": rank_share(contexts), "rank_centred": rank_share(contexts, centred=True)}
        if arm in SWEPT:
            alone = final(contexts_of(model, test, "token_only"))
            out["rank_above_token_only"] = out["rank"] - rank_share(alone)
            out |= {f"null.{name}": value for name, value in nulls(contexts, alone, seed).items()}
    curves = read_corrected(
        text,
        model,
        stream,
        chosen.contexts,
        how=models.corrected.reading,
        looks=sizes.looks,
        updates=sizes.updates,
        seed=seed,
    )
    best = curves.best("calibration")
    out |= {"nll": curves.nll["test"][best], "accuracy": curves.accuracy["test"][best], "look": best + 1}
    return out | {
        f"nll_patience_{patience}": curves.nll["test"][curves.best("calibration", patience)]
        for patience in PATIENCES
    }


def corrected_values(of_arms: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """All keys of one random seed from what its arms came to."""
    out: dict[str, float] = {}
    for arm, values in of_arms.items():
        out |= {f"ppl.{arm}": math.exp(values["nll"])}
        out |= {f"{name}.{arm}": value for name, value in values.items() if not name.startswith("nll")}
        out |= {
            f"patience_{patience}.nats.{arm}": values[f"nll_patience_{patience}"] - values["nll"]
            for patience in PATIENCES
        }
    nll = {arm: values["nll"] for arm, values in of_arms.items()}
    out |= differences(nll, PAIRS)
    for patience in PATIENCES:
        early = {arm: values[f"nll_patience_{patience}"] for arm, values in of_arms.items()}
        out |= {
            f"patience_{patience}.{name}": value
            for name, value in differences(early, [("all", "first")]).items()
        }
    rank = {arm: values["rank"] for arm, values in of_arms.items() if "rank" in values}
    for one, other in RANKED_PAIRS:
        if {one, other} <= set(of_arms):
            out[f"rank_diff.{one}_minus_{other}"] = rank[one] - rank[other]
    if {"all", "first"} <= set(of_arms):
        accuracy = {arm: values["accuracy"] for arm, values in of_arms.items()}
        out |= against_first(nll, accuracy, "all")
        out["slope.between"] = out["diff.all_minus_first"] / out["rank_diff.all_minus_first"]
    return out | causes(nll, rank)


def slopes(
    nll: Mapping[str, float], rank: Mapping[str, float], swept: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    """Nats per unit of rank by token input, where all arms that are ``swept`` are there."""
    out: dict[str, float] = {}
    for token_input, arms in swept.items():
        if set(arms) <= set(nll):
            x, y = (np.array([by_arm[arm] for arm in arms]) for by_arm in (rank, nll))
            out[f"slope.{token_input}"] = float(np.polyfit(x, y, 1)[0])
    return out


def against_first(nll: Mapping[str, float], accuracy: Mapping[str, float], arm: str) -> dict[str, float]:
    """How much better an arm is than ``first``.

    ``ppl_gain``: by which share its perplexity is lower; ``accuracy_gain``: by which share its accuracy is
    higher; ``accuracy_diff``: the difference of the accuracies.
    """
    return {
        f"ppl_gain.{arm}_over_first": 1 - math.exp(nll[arm] - nll["first"]),
        f"accuracy_gain.{arm}_over_first": accuracy[arm] / accuracy["first"] - 1,
        f"accuracy_diff.{arm}_minus_first": accuracy[arm] - accuracy["first"],
    }


def causes(nll: Mapping[str, float], rank: Mapping[str, float]) -> dict[str, float]:
    """What rank has to do with loss, both by arm.

    ``slope``: nats per unit of rank as the weight alone changes. ``correlation``: over all arms.
    ``explained``: the share of the gap between all and first that the slopes promise for their difference
    in rank.
    """
    out = slopes(nll, rank, SWEPT)
    if set(RANKED) <= set(nll):
        out["correlation.arms"] = float(
            spearmanr([rank[arm] for arm in RANKED], [nll[arm] for arm in RANKED])[0]
        )
        promised = (out["slope.all"] + out["slope.first"]) / 2 * (rank["all"] - rank["first"])
        out["explained"] = promised / (nll["all"] - nll["first"])
    return out


def rank_figure(by_seed: Sequence[Mapping[str, float]], arms: Sequence[str]) -> dict[str, Any]:
    """Loss by rank: a point per arm, in groups that differ in the weight alone."""
    shown = over_seeds(
        [{key: row[key] for key in row if key.split(".")[0] in ("rank", "ppl")} for row in by_seed]
    )
    rows = []
    for arm in arms:
        if f"rank.{arm}" in shown:
            token_input = CORRECTED_ARMS[arm].token_input
            swept = arm in SWEPT[token_input]
            group = f"{token_input}, by weight" if swept else arm.replace("_", ", ")
            cells = [
                [shown[f"{name}.{arm}"][part] for part in ("value", "low", "high")]
                for name in ("rank", "ppl")
            ]
            rows.append([group, arm, *cells])
    return {
        "title": "Perplexity of test text by effective rank",
        "columns": ["contexts", "arm", "effective rank / width", "perplexity"],
        "rows": rows,
        "note": "Whiskers: intervals over seeds. "
        "By weight: arms that differ in the weight of diversity alone.",
        "plot": {
            "x": "effective rank / width",
            "y": "perplexity",
            "group": "contexts",
            "points": sorted({row[0] for row in rows}),
        },
    }


# Both -------------------------------------------------------------------------------------------------------


def _given(job: Job) -> tuple[ContextInputs, ContextModels, ContextText]:
    """Settings of this study and of the models, and the text as they read it."""
    models = ContextModels.of(job.shared["context_models"])
    return ContextInputs.of(job.settings), models, context_text(job.text, models)
