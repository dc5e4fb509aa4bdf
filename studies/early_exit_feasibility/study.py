"""Is it safe to leave after the first of four layers? (Report character-systems, experiment 9.)

Published: one model on a repeated pangram, by the weights of the last epoch. Corrected, on the models of
experiment 8: real text, five random seeds, thresholds from calibration text, all figures on test text.
Arms: four layers trained on the last exit, as the report's, whose head never saw layer 1, and on every
layer, after as many updates and under ``flops.`` after as many FLOPs of training as the other arm's. The
cut in scale is that of ``studies.common.layered_models``.

Agreement compares predictions; that of correctness flags, which the report published, stands beside it.
Where a published figure is of the tokens that leave at a threshold, the corrected one (``_at``) is of as
many tokens: on real text nobody may reach it. What confidence is worth at these shares stands between random
exits and two oracles (``studies.common.early_exit``).

Shapes: N tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from offramp.exits.ranking import auroc
from offramp.models.native import BlockwiseLM
from studies.common.characters import Characters, Sizes, corrected_splits, published_1b
from studies.common.curves import panels_figure
from studies.common.early_exit import (
    NOBODY,
    Windows,
    as_published,
    execute,
    quantile_threshold,
    signal_values,
)
from studies.common.layer_statistics import LayerStatistics, distinct_contexts, layer_statistics
from studies.common.layered_models import (
    LAYER_ARMS,
    STARTS,
    LayeredModels,
    groups_of,
    prefixed,
    train_as_published,
    trained,
)
from studies.common.results import over_seeds
from studies.common.settings import Settings
from studies.common.study import Job, Outcome
from studies.common.workers import run_arms

ARMS = LAYER_ARMS
PUBLISHED_ARM = "four_layers"
CONTEXT = 16
"""Characters that tell two places of a text apart, for counting how many there are."""
FIRST = 1
"""The exit, after so many layers."""

Curves = dict[str, dict[float, float]]
"""By what is measured, its value by share of tokens that leave."""


class EarlyExitFeasibility(Settings):
    """The settings of this study."""

    published_shares: dict[float, float]
    """Share of tokens that left at each threshold, as published."""
    shares: list[float]
    """Of tokens that leave, of the curves."""


# Published --------------------------------------------------------------------------------------------------


def published(job: Job) -> Outcome:
    """The report's model on the pangram."""
    if PUBLISHED_ARM not in job.arms:
        return Outcome([])
    settings, models, sizes = _given(job)
    data = published_1b(sizes)
    run = train_as_published(data, PUBLISHED_ARM, job.seeds[0], models, "layers")
    tokens, targets = data.windows("validation")
    statistics = layer_statistics(run.last, tokens, targets)
    values = overall(statistics)
    values["contexts"] = distinct_contexts(tokens.numpy(), targets.numpy(), CONTEXT)
    confidence = statistics.max_prob[0]
    for threshold, share in settings.published_shares.items():
        reached = confidence >= threshold
        # what holds of nobody is undefined: where none reaches it, as many as published are looked at
        leaves = reached if reached.any() else confidence >= quantile_threshold(confidence, share)
        values[f"exit.{threshold}"] = float(reached.mean())
        values |= of_those(statistics, leaves, f".{threshold}")
    routed = as_published(statistics, FIRST, models.threshold)
    values |= {
        "accuracy.adaptive": routed.accuracy,
        "compute.adaptive": routed.layers,
        "layer_saving.adaptive": 1 - routed.layers,
        "adaptive_minus_last": routed.accuracy - values["accuracy.last"],
    }
    values |= signal_values(statistics, FIRST, named(settings.published_shares))
    curves = {"the pangram": {PUBLISHED_ARM: [agreement_curves(statistics, settings.shares)]}}
    return Outcome([values], {"agreement": agreement_figure(curves)})


# Corrected --------------------------------------------------------------------------------------------------


def corrected(job: Job) -> Outcome:
    """Models of every random seed on real text."""
    settings, models, sizes = _given(job)
    results = trained(
        job.text,
        "layers",
        job.arms,
        models,
        sizes,
        seeds=job.seeds,
        processes=job.processes,
        cache=job.cache,
    )
    names = sizes.names(job.text.corpus)
    data = {size: corrected_splits(job.text, size, sizes) for size in names}
    groups = groups_of(results)
    jobs = [(data[group.size], group.models, models.threshold, settings) for group in groups]
    rows: list[dict[str, float]] = [{} for _ in job.seeds]
    curves: dict[str, dict[str, list[Curves]]] = {}
    for group, measured in zip(groups, run_arms(arm_values, jobs, job.processes)):
        for row, (values, _) in zip(rows, measured):
            row |= prefixed(f"{group.size}.{group.start}", values)
        for arm in (arm for arm in job.arms if STARTS[arm] == group.start):
            curves.setdefault(f"{group.size} characters", {})[arm] = [curve for _, curve in measured]
    figures = {"agreement": agreement_figure(curves)}
    if len(rows) > 1:
        figures["safe"] = safe_table(rows, names, job.arms)
    return Outcome(rows, figures)


def arm_values(
    data: Characters, models: Sequence[BlockwiseLM], threshold: float, settings: EarlyExitFeasibility
) -> list[tuple[dict[str, float], Curves]]:
    """``model_values`` of every random seed."""
    calibration, test = data.windows("calibration"), data.windows("test")
    return [model_values(model, calibration, test, threshold, settings) for model in models]


def model_values(
    model: BlockwiseLM,
    calibration: Windows,
    test: Windows,
    published_threshold: float,
    settings: EarlyExitFeasibility,
) -> tuple[dict[str, float], Curves]:
    """All figures of one model on test text, and its curves."""
    known, statistics = layer_statistics(model, *calibration), layer_statistics(model, *test)
    values = overall(statistics)
    for threshold, share in settings.published_shares.items():
        at = quantile_threshold(known.max_prob[0], share)
        leaves = statistics.max_prob[0] >= at
        values |= {
            f"exit.{threshold}": float((statistics.max_prob[0] >= threshold).mean()),
            f"share_at.{threshold}": float(leaves.mean()),
            f"adaptive_minus_last_at.{threshold}": execute(model, FIRST, test, at).accuracy
            - values["accuracy.last"],
        }
        values |= of_those(statistics, leaves, f"_at.{threshold}")
    routed = execute(model, FIRST, test, published_threshold)
    values |= {
        "accuracy.adaptive": routed.accuracy,
        "compute.adaptive": routed.layers,
        "layer_saving.adaptive": 1 - routed.layers,
        "executed.adaptive": routed.flops,
    }
    values |= signal_values(statistics, FIRST, named(settings.published_shares))
    chosen = safe_threshold(known)
    safe = execute(model, FIRST, test, chosen)
    values |= {
        "safe.threshold": min(chosen, 1.0),
        "safe.exit": safe.shallow,
        "safe.executed": safe.flops,
        "safe.compute": safe.layers,
        "safe.adaptive_minus_last": safe.accuracy - values["accuracy.last"],
    }
    return values, agreement_curves(statistics, settings.shares)


def safe_threshold(known: LayerStatistics) -> float:
    """The lowest threshold at which early exit loses no accuracy on calibration text; ``NOBODY`` if there
    is none."""
    order = np.argsort(-known.max_prob[0], kind="stable")
    confidence = known.max_prob[0][order]
    lost = np.cumsum(known.correct[-1][order].astype(int) - known.correct[0][order])
    last_of_ties = np.append(confidence[1:] < confidence[:-1], True)
    allowed = np.flatnonzero((lost <= 0) & last_of_ties)
    return float(confidence[allowed[-1]]) if len(allowed) else NOBODY


# Both -------------------------------------------------------------------------------------------------------


def _given(job: Job) -> tuple[EarlyExitFeasibility, LayeredModels, Sizes]:
    """Settings of this study, of the models and of the texts' sizes."""
    return (
        EarlyExitFeasibility.of(job.settings),
        LayeredModels.of(job.shared["layered_models"]),
        Sizes.of(job.shared["characters"]),
    )


def named(shares: Mapping[float, float]) -> dict[str, float]:
    """Shares of tokens that leave, by the threshold at which as many left as published, as keys name it."""
    return {str(threshold): share for threshold, share in shares.items()}


def agreement(statistics: LayerStatistics, layer: int) -> np.ndarray:
    """bool (N,): whether ``layer`` predicts what the last one predicts. Equal predictions, right or wrong."""
    return statistics.argmax[layer] == statistics.argmax[-1]


def flag_agreement(statistics: LayerStatistics, layer: int) -> np.ndarray:
    """bool (N,): whether ``layer`` is right exactly where the last one is, as published.

    Two different wrong answers "agree".
    """
    return statistics.correct[layer] == statistics.correct[-1]


def overall(statistics: LayerStatistics) -> dict[str, float]:
    """Figures that need no threshold.

    ``auroc``: how well the length of layer 1's step, and its confidence, tell tokens that the last layer has
    right from the others; one half is chance.
    """
    first, last = statistics.correct[0], statistics.correct[-1]
    confidence = statistics.max_prob[0]
    right, wrong = confidence[last].mean(), confidence[~last].mean()
    out = {
        "auroc.norm": auroc(statistics.step[0], last),
        "auroc.confidence": auroc(confidence, last),
        "compute.first": FIRST / len(statistics.loss),
        "compute.last": 1.0,
        "r": np.corrcoef(statistics.loss[0], statistics.loss[-1])[0, 1],
        "confidence.right": right,
        "confidence.wrong": wrong,
        "confidence.gap": right - wrong,
        "accuracy.first": first.mean(),
        "accuracy.last": last.mean(),
        "first_right_of_last_right": first[last].mean(),
        "first_wrong_of_last_right": 1 - first[last].mean(),
        "agreement.all": agreement(statistics, 0).mean(),
        "flag_agreement.all": flag_agreement(statistics, 0).mean(),
    }
    return {key: float(value) for key, value in out.items()}


def of_those(statistics: LayerStatistics, leaves: np.ndarray, name: str) -> dict[str, float]:
    """Accuracies and agreements of the tokens that leave (N,); ``name`` ends the keys."""
    of_tokens = {
        "first_accuracy": statistics.correct[0],
        "last_accuracy": statistics.correct[-1],
        "agreement": agreement(statistics, 0),
        "flag_agreement": flag_agreement(statistics, 0),
    }
    return {f"{key}{name}": float(values[leaves].mean()) for key, values in of_tokens.items()}


def agreement_curves(statistics: LayerStatistics, shares: Sequence[float]) -> Curves:
    """Agreements of the most confident tokens, by their share."""
    order = np.argsort(-statistics.max_prob[0], kind="stable")
    measured = {
        "predictions": agreement(statistics, 0)[order],
        "correctness flags": flag_agreement(statistics, 0)[order],
    }
    return {
        name: {share: float(values[: max(1, round(share * len(values)))].mean()) for share in shares}
        for name, values in measured.items()
    }


def agreement_figure(curves: Mapping[str, Mapping[str, list[Curves]]]) -> dict[str, Any]:
    """By size of text: both agreements of each arm."""
    words = {"four_layers": "last layer trained", "lpt": "every layer trained"}
    panels = {
        size: {
            f"{measure}, {words[arm]}": [curve[measure] for curve in of_seeds]
            for arm, of_seeds in of_size.items()
            for measure in of_seeds[0]
        }
        for size, of_size in curves.items()
    }
    return panels_figure(
        "Agreement of layer 1 with the last layer",
        panels,
        "text",
        "share that leaves",
        "agreement",
        "Of the most confident tokens; those that leave first are on the left.",
    )


def safe_table(rows: list[dict[str, float]], sizes: Sequence[str], arms: Sequence[str]) -> dict[str, Any]:
    """What the lowest threshold does that lost no accuracy on calibration text."""
    means, cells = over_seeds(rows), []
    for size in sizes:
        for arm, start in STARTS.items():
            if arm.split(",")[0] not in arms:
                continue
            values = [
                means[f"{size}.{start}safe.{name}"]
                for name in ("threshold", "exit", "executed", "adaptive_minus_last")
            ]
            intervals = [[value["value"], value["low"], value["high"]] for value in values]
            cells.append([size, arm.replace("_", " "), *intervals])
    return {
        "title": "Early exit at layer 1 with the lowest threshold that lost no accuracy on calibration text",
        "note": "Executed on test text; mean and 95 % t interval over seeds. "
        "FLOPs include the exit's readouts.",
        "columns": [
            "text",
            "trained on",
            "threshold",
            "share that leaves",
            "FLOPs run",
            "accuracy against full depth",
        ],
        "rows": cells,
    }
