"""Which training loss suits a routed model, and does supervising every layer make exits over-confident?
(Report character-systems, experiment 11.)

Arms: half of each exit's loss (routed); every layer (lpt); routing aware. Published: on a repeated pangram,
headlines by the weights of the best epoch, the sweep of thresholds by those of the last. Corrected, on
models of experiment 10: real text, five random seeds, weights and thresholds from calibration text, all
executed on test text, and the sweep of thresholds on the model of the headline. Keys with ``flops.`` are of
models that had the same FLOPs of training instead of the same number of updates. The cut in scale is that
of ``studies.common.layered_models``.

A confidence is the largest probability of a layer's prediction. ``over`` is its mean minus the accuracy
there, ``ece`` the expected calibration error over bins of equally many tokens, ``r`` the correlation of
confidence and being right; by layers 1 to 4, of which 2 and 4 are exits. What confidence is worth stands
between random exits and two oracles.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from offramp.exits.calibration import expected_calibration_error, reliability
from offramp.models.native import BlockwiseLM
from studies.common.characters import Characters, Sizes, corrected_splits, published_1b
from studies.common.early_exit import (
    Routed,
    Windows,
    as_published,
    depth_flops,
    execute,
    path_values,
    quantile_threshold,
    share_within,
    signal_values,
)
from studies.common.layer_statistics import LayerStatistics, layer_statistics
from studies.common.layered_models import (
    LOSS_ARMS,
    LayeredModels,
    prefixed,
    published_models,
    trained,
    training_values,
)
from studies.common.results import over_seeds
from studies.common.settings import Settings
from studies.common.study import Job, Outcome
from studies.common.tables import Values
from studies.common.workers import run_arms

ARMS = LOSS_ARMS
COMPARED = [(one, other) for place, one in enumerate(ARMS) for other in ARMS[:place]]
"""Pairs of arms, the first minus the second."""
WORDS = {"routed": "half of each exit", "lpt": "every layer (LPT)", "routing_aware": "routing aware"}

Ways = Mapping[float, Routed]
"""A model's uses by threshold."""


class RoutingLosses(Settings):
    """The settings of this study."""

    thresholds: list[float]
    """Of the sweep."""
    shares: list[float]
    """Of tokens that leave early, for what confidence is worth."""
    bins: int
    """Of calibration errors."""


# Published --------------------------------------------------------------------------------------------------


def published(job: Job) -> Outcome:
    """The report's models on the pangram."""
    settings, models, sizes = _given(job)
    data, last = published_1b(sizes), {}
    values: dict[str, float] = {}
    for arm, run in published_models(data, job.arms, job.seeds[0], models, job.processes).items():
        best, last[arm] = (
            layer_statistics(model, *data.windows("validation")) for model in (run.best, run.last)
        )
        headline = as_published(best, models.shallow, models.threshold)
        values |= {
            f"ppl.{arm}": headline.ppl,
            f"accuracy.{arm}": headline.accuracy,
            f"shallow.{arm}": headline.shallow,
            f"compute.{arm}": headline.layers,
            f"best_epoch.{arm}": run.best_epoch,
        }
        ways = {
            threshold: as_published(last[arm], models.shallow, threshold) for threshold in settings.thresholds
        }
        values |= swept(arm, ways) | exit_values(last[arm], arm, models.shallow, settings)
    values |= compared(values, settings.thresholds, models.layers)
    figure = reliability_figure({"the pangram, last epoch": [last]}, models, settings.bins)
    return Outcome([values], {"reliability": figure})


# Corrected --------------------------------------------------------------------------------------------------


def corrected(job: Job) -> Outcome:
    """Models of every random seed on real text."""
    settings, models, sizes = _given(job)
    results = trained(
        job.text,
        "routing",
        job.arms,
        models,
        sizes,
        seeds=job.seeds,
        processes=job.processes,
        cache=job.cache,
    )
    names = sizes.names(job.text.corpus)
    data = {size: corrected_splits(job.text, size, sizes) for size in names}
    places = [(size, place) for size in names for place in range(len(job.seeds))]
    jobs = [
        (
            data[size],
            {arm: results[size, arm].models[place] for arm in job.arms},
            {arm: results[size, arm].flops_models[place] for arm in job.arms},
            models,
            settings,
        )
        for size, place in places
    ]
    rows: list[dict[str, float]] = [{} for _ in job.seeds]
    panels: dict[str, list[dict[str, LayerStatistics]]] = {}
    for (size, place), (values, statistics) in zip(places, run_arms(size_values, jobs, job.processes)):
        rows[place] |= prefixed(f"{size}.", values)
        panels.setdefault(f"{size} characters", []).append(statistics)
    for place, row in enumerate(rows):
        for size in names:
            for arm in job.arms:
                row |= training_values(results[size, arm], size, arm, place)
    figures = {"reliability": reliability_figure(panels, models, settings.bins)}
    if len(rows) > 1:
        figures["exits"] = exit_table(rows, names, job.arms, models)
        figures["equal flops"] = difference_table(rows, names, models.shallow)
    return Outcome(rows, figures)


def size_values(
    data: Characters,
    by_arm: Mapping[str, BlockwiseLM],
    flops_by_arm: Mapping[str, BlockwiseLM],
    models: LayeredModels,
    settings: RoutingLosses,
) -> tuple[dict[str, float], dict[str, LayerStatistics]]:
    """``seed_values`` of one random seed's models of one size of text, those of equal FLOPs under
    ``flops.``."""
    calibration, test = data.windows("calibration"), data.windows("test")
    values, statistics = seed_values(by_arm, calibration, test, models, settings)
    flops_values, _ = seed_values(flops_by_arm, calibration, test, models, settings)
    return values | prefixed("flops.", flops_values), statistics


def seed_values(
    by_arm: Mapping[str, BlockwiseLM],
    calibration: Windows,
    test: Windows,
    models: LayeredModels,
    settings: RoutingLosses,
) -> tuple[dict[str, float], dict[str, LayerStatistics]]:
    """All figures of one random seed's models, and what their layers make of the test text."""
    values: dict[str, float] = {}
    statistics = {arm: layer_statistics(model, *test) for arm, model in by_arm.items()}
    for arm, model in by_arm.items():
        values |= model_values(model, arm, calibration, test, models, settings.thresholds)
        values |= exit_values(statistics[arm], arm, models.shallow, settings)
    return values | compared(values, settings.thresholds, models.layers), statistics


def model_values(
    model: BlockwiseLM,
    arm: str,
    calibration: Windows,
    test: Windows,
    models: LayeredModels,
    thresholds: Sequence[float],
) -> dict[str, float]:
    """One model by its thresholds, and at the compute of three layers."""
    exit_after, vocab_size = models.shallow, model.config.vocab_size
    ways = {
        threshold: execute(model, exit_after, test, threshold)
        for threshold in sorted({*thresholds, models.threshold})
    }
    headline = ways[models.threshold]
    confidence = layer_statistics(model, *calibration).max_prob[exit_after - 1]
    three_layers = depth_flops(exit_after + 1, vocab_size, models) / depth_flops(
        models.layers, vocab_size, models
    )
    share = share_within(model, exit_after, calibration, confidence, three_layers)
    budget = execute(model, exit_after, test, quantile_threshold(confidence, share))
    return {
        f"ppl.{arm}": headline.ppl,
        f"accuracy.{arm}": headline.accuracy,
        f"shallow.{arm}": headline.shallow,
        f"compute.{arm}": headline.layers,
        f"executed.{arm}": headline.flops,
        f"budget.ppl.{arm}": budget.ppl,
        f"budget.accuracy.{arm}": budget.accuracy,
        f"budget.executed.{arm}": budget.flops,
    } | swept(arm, ways)


# Both -------------------------------------------------------------------------------------------------------


def _given(job: Job) -> tuple[RoutingLosses, LayeredModels, Sizes]:
    """Settings of this study, of the models and of the texts' sizes."""
    return (
        RoutingLosses.of(job.settings),
        LayeredModels.of(job.shared["layered_models"]),
        Sizes.of(job.shared["characters"]),
    )


def exit_values(statistics: LayerStatistics, arm: str, exit_after: int, settings: RoutingLosses) -> Values:
    """Confidence of every layer, specialisation of the paths, and what the shallow exit's confidence is
    worth."""
    out: Values = {**confidence_values(statistics, arm, settings.bins)}
    out[f"specialisation.{arm}"] = path_values(statistics, exit_after)["paths.specialisation"]
    shares = {f"{arm}.{share}": share for share in settings.shares}
    return out | signal_values(statistics, exit_after, shares)


def confidence_values(statistics: LayerStatistics, arm: str, bins: int) -> dict[str, float]:
    """Mean confidence, accuracy, their difference and correlation, and calibration error of every layer."""
    out: dict[str, float] = {}
    for layer, (confidence, right) in enumerate(zip(statistics.max_prob, statistics.correct), 1):
        out |= {
            f"confidence.{arm}.{layer}": float(confidence.mean()),
            f"right.{arm}.{layer}": float(right.mean()),
            f"r.{arm}.{layer}": float(np.corrcoef(confidence, right)[0, 1]),
            f"over.{arm}.{layer}": float(confidence.mean() - right.mean()),
            f"ece.{arm}.{layer}": expected_calibration_error(confidence, right, bins),
        }
    return out


def compared(values: Mapping[str, float], thresholds: Sequence[float], layers: int) -> dict[str, float]:
    """Differences between arms, in nats for perplexities."""
    out: dict[str, float] = {}
    numbers = range(1, layers + 1)
    for one, other in COMPARED:
        if f"ppl.{one}" not in values or f"ppl.{other}" not in values:
            continue
        pair = f"{one}_minus_{other}"
        out[f"diff.{pair}"] = math.log(values[f"ppl.{one}"] / values[f"ppl.{other}"])
        if f"budget.ppl.{one}" in values:
            out[f"diff.budget_{pair}"] = math.log(values[f"budget.ppl.{one}"] / values[f"budget.ppl.{other}"])
        for threshold in thresholds:
            at = [values[f"sweep.ppl.{arm}.{threshold}"] for arm in (one, other)]
            out[f"sweep.diff.{pair}.{threshold}"] = math.log(at[0] / at[1])
        for name in ("accuracy", "shallow", "compute", "specialisation"):
            out[f"{name}.{pair}"] = values[f"{name}.{one}"] - values[f"{name}.{other}"]
        by_layer = [(name, numbers) for name in ("confidence", "right", "r", "over", "ece")]
        for name, ends in (("sweep.shallow", thresholds), *by_layer):
            out |= {
                f"{name}.{pair}.{end}": values[f"{name}.{one}.{end}"] - values[f"{name}.{other}.{end}"]
                for end in ends
            }
    return out


def swept(arm: str, ways: Ways) -> dict[str, float]:
    """What each threshold does, and what comes of the lowest instead of the highest."""
    out: dict[str, float] = {}
    for threshold, way in ways.items():
        out |= {
            f"sweep.ppl.{arm}.{threshold}": way.ppl,
            f"sweep.accuracy.{arm}.{threshold}": way.accuracy,
            f"sweep.shallow.{arm}.{threshold}": way.shallow,
            f"sweep.compute.{arm}.{threshold}": way.layers,
        }
    nll, lowest, highest = [way.nll for way in ways.values()], ways[min(ways)], ways[max(ways)]
    return out | {
        f"sweep_range.{arm}": max(nll) - min(nll),
        f"sweep_more_leave.{arm}": lowest.shallow - highest.shallow,
        f"sweep_less_compute.{arm}": highest.layers - lowest.layers,
    }


# Figures ----------------------------------------------------------------------------------------------------


def reliability_figure(
    panels: Mapping[str, list[dict[str, LayerStatistics]]], models: LayeredModels, bins: int
) -> dict[str, Any]:
    """Reliability of each exit's confidence by loss.

    A panel holds what the models of every random seed make of the same text.
    """
    exits = {models.shallow: "shallow exit", models.layers: "deep exit"}
    rows = []
    for panel, seeds in panels.items():
        for layer, exit in exits.items():
            for arm in seeds[0]:
                confidence, right = (
                    np.concatenate([getattr(by_arm[arm], name)[layer - 1] for by_arm in seeds])
                    for name in ("max_prob", "correct")
                )
                rows += [
                    [f"{panel}, {exit}", WORDS[arm], row["confidence"], row["agreement"]]
                    for row in reliability(confidence, right, bins)
                ]
    return {
        "title": "Reliability of both exits by training loss",
        "rows": rows,
        "columns": ["text", "loss", "confidence", "accuracy"],
        "note": "Bins of equally many tokens, of all seeds together; below the dashed line an exit promises "
        "more than it keeps.",
        "plot": {"x": "confidence", "y": "accuracy", "group": "loss", "panel": "text", "diagonal": True},
    }


def exit_table(
    rows: list[dict[str, float]], sizes: Sequence[str], arms: Sequence[str], models: LayeredModels
) -> dict[str, Any]:
    """Perplexity, share that leaves and confidence of the routed models, by loss."""
    means = over_seeds(rows)
    names = (
        "ppl.{}",
        "budget.ppl.{}",
        "shallow.{}",
        f"over.{{}}.{models.shallow}",
        f"ece.{{}}.{models.shallow}",
        f"over.{{}}.{models.layers}",
        f"ece.{{}}.{models.layers}",
    )
    return {
        "title": "Routed models by training loss",
        "rows": [
            [size, WORDS[arm], *(_cell(means[f"{size}.{name.format(arm)}"]) for name in names)]
            for size in sizes
            for arm in arms
        ],
        "columns": [
            "text",
            "loss",
            "perplexity at 0.8",
            "perplexity at three layers' compute",
            "leaving at 0.8",
            "over-confidence, shallow exit",
            "ECE, shallow exit",
            "over-confidence, deep exit",
            "ECE, deep exit",
        ],
        "note": "Test text; mean and 95 % t interval over seeds. "
        "Over-confidence: mean confidence minus accuracy.",
    }


def difference_table(rows: list[dict[str, float]], sizes: Sequence[str], shallow: int) -> dict[str, Any]:
    """Arms against each other, at equal updates and at equal FLOPs of training."""
    means = over_seeds(rows)
    measures = {
        "diff.{}": "nats at 0.8",
        "diff.budget_{}": "nats at three layers' compute",
        f"over.{{}}.{shallow}": "over-confidence, shallow exit",
        f"ece.{{}}.{shallow}": "ECE, shallow exit",
    }
    cells = []
    for size in sizes:
        for one, other in COMPARED:
            for key, words in measures.items():
                names = [f"{size}.{start}{key.format(f'{one}_minus_{other}')}" for start in ("", "flops.")]
                if set(names) <= set(means):
                    pair = f"{WORDS[one]} minus {WORDS[other]}"
                    cells.append([size, pair, words, *(_cell(means[name]) for name in names)])
    return {
        "title": "Training losses against each other",
        "rows": cells,
        "columns": ["text", "losses", "measure", "equal updates", "equal training FLOPs"],
        "note": "Test text, paired by seed; mean and 95 % t interval over seeds. Equal FLOPs: those of four "
        "layers trained on the last exit.",
    }


def _cell(value: Mapping[str, float]) -> list[float]:
    return [value["value"], value["low"], value["high"]]
