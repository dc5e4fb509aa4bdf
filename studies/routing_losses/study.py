"""Seed 001, experiment 11: which training loss suits a routed model, and does supervising every layer make exits over-confident?

``python -m studies.routing_losses.study --corpus pangram`` reruns it as published, ``--corpus sotu`` (or wikitext, or text of
your own) as corrected, on models of experiment 10: real text, five seeds, weights and thresholds from calibration text, all
executed on test text, and the sweep of thresholds on the model of the headline. Arms: half of each exit's loss; every layer (full
LPT); routing aware. Keys with ``flops.`` are of models that had the same FLOPs of training instead of the same number of updates.

A confidence is the largest probability of a layer's prediction. ``over`` is its mean minus the accuracy there, ``ece`` the
expected calibration error over bins of equally many tokens; by layers 1 to 4, of which 2 and 4 are exits.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from offramp.exits.calibration import expected_calibration_error, reliability
from offramp.models.native import BlockwiseLM
from studies.common.workers import PUBLISHED_SEED, SEEDS, Outcome, study_main
from studies.common.characters import SIZES_OF, corrected, published_1b
from studies.common.depth import (
    LAYERS,
    LOSSES,
    SETTINGS,
    SHALLOW,
    evaluated,
    prefixed,
    protocol_of,
    published_runs,
    trained,
    training_values,
)
from studies.common.exits import (
    Windows,
    as_published,
    depth_flops,
    execute,
    quantile_threshold,
    share_within,
)
from studies.common.results import over_seeds, study_params
from studies.common.text import StudyText
from studies.measures.layer_contribution import LayerStatistics, layer_statistics

FLAWS = [
    "F9 train and validation text are two repeated sentences, not WikiText-2; the best epoch is the first",
    "F17 the headline is of the best epoch, the sweep of thresholds of the last one",
    "F18 every layer is computed for every token; the compute is a formula over layers",
    "one seed, whose ranking of the losses differs between machines",
]
PARAMS: dict[str, Any] = study_params("routing_losses")
THRESHOLDS: list[float] = PARAMS["thresholds"]
COMPARED = [(one, other) for place, one in enumerate(LOSSES) for other in LOSSES[:place]]
"""Pairs of arms, the first minus the second."""


def confidence_values(found: LayerStatistics, arm: str) -> dict[str, float]:
    """Over-confidence and calibration error of every layer."""
    out = {}
    for layer, (confidence, right) in enumerate(zip(found.max_prob, found.correct), 1):
        out |= {
            f"over.{arm}.{layer}": float(confidence.mean() - right.mean()),
            f"ece.{arm}.{layer}": expected_calibration_error(confidence, right, PARAMS["bins"]),
        }
    return out


def compared(values: dict[str, float]) -> dict[str, float]:
    """Differences between arms, in nats for perplexities."""
    out = {}
    for one, other in COMPARED:
        if f"ppl.{one}" not in values or f"ppl.{other}" not in values:
            continue
        pair = f"{one}_minus_{other}"
        out[f"diff.{pair}"] = math.log(values[f"ppl.{one}"] / values[f"ppl.{other}"])
        if f"budget.ppl.{one}" in values:
            out[f"diff.budget_{pair}"] = math.log(values[f"budget.ppl.{one}"] / values[f"budget.ppl.{other}"])
        out[f"accuracy.{pair}"] = values[f"accuracy.{one}"] - values[f"accuracy.{other}"]
        for name, ends in (
            ("sweep.shallow", THRESHOLDS),
            ("over", range(1, LAYERS + 1)),
            ("ece", range(1, LAYERS + 1)),
        ):
            out |= {
                f"{name}.{pair}.{end}": values[f"{name}.{one}.{end}"] - values[f"{name}.{other}.{end}"]
                for end in ends
            }
    return out


def swept(arm: str, ways: dict[float, Any]) -> dict[str, float]:
    """What each threshold does, and by how much perplexity changes between them."""
    out = {}
    for threshold, way in ways.items():
        out |= {f"sweep.ppl.{arm}.{threshold}": way.ppl, f"sweep.shallow.{arm}.{threshold}": way.shallow}
    nll = [way.nll for way in ways.values()]
    return out | {f"sweep_range.{arm}": max(nll) - min(nll)}


def run_published(arms: list[str]) -> Outcome:
    data, values, last = published_1b(), {}, {}
    for arm, run in published_runs(data, arms, PUBLISHED_SEED).items():
        best, last[arm] = (
            layer_statistics(model, *data.windows("validation")) for model in (run.best, run.last)
        )
        headline = as_published(best, SHALLOW, SETTINGS["threshold"])
        values |= {
            f"ppl.{arm}": headline.ppl,
            f"accuracy.{arm}": headline.accuracy,
            f"shallow.{arm}": headline.shallow,
            f"compute.{arm}": headline.layers,
            f"best_epoch.{arm}": run.best_epoch,
        }
        values |= swept(
            arm, {threshold: as_published(last[arm], SHALLOW, threshold) for threshold in THRESHOLDS}
        )
        values |= confidence_values(last[arm], arm)
    return Outcome(
        values | compared(values),
        None,
        {"reliability": reliability_figure({"the pangram, last epoch": [last]})},
    )


def run_corrected(text: StudyText, arms: list[str], root: Path = Path(".")) -> Outcome:
    models = trained(text, "depth_routing", arms, root)
    sizes = SIZES_OF[text.corpus]
    jobs = [
        (
            text,
            size,
            *(
                {arm: getattr(models[size, arm], limit)[seed] for arm in arms}
                for limit in ("models", "flops_models")
            ),
        )
        for size in sizes
        for seed in range(len(SEEDS))
    ]
    seeds: list[dict[str, float]] = [{} for _ in SEEDS]
    panels: dict[str, list[dict[str, LayerStatistics]]] = {}
    for place, (values, statistics) in enumerate(evaluated(size_values, jobs)):
        size = jobs[place][1]
        seeds[place % len(SEEDS)] |= prefixed(f"{size}.", values)
        panels.setdefault(f"{size} characters", []).append(statistics)
    for place, values in enumerate(seeds):
        for size in sizes:
            for arm in arms:
                values |= training_values(models[size, arm], size, arm, place)
    figures = {
        "reliability": reliability_figure(panels),
        "exits": exit_table(seeds, sizes, arms),
        "equal flops": difference_table(seeds, sizes),
    }
    return Outcome(None, seeds, figures)


def size_values(
    text: StudyText, size: str, models: dict[str, BlockwiseLM], flops_models: dict[str, BlockwiseLM]
) -> tuple[dict[str, float], dict[str, LayerStatistics]]:
    """``seed_values`` of one seed's models of one size of text, those of equal FLOPs under ``flops.``."""
    data = corrected(text, size)
    calibration, test = data.windows("calibration"), data.windows("test")
    values, found = seed_values(models, calibration, test)
    return values | prefixed("flops.", seed_values(flops_models, calibration, test)[0]), found


def seed_values(
    models: dict[str, BlockwiseLM], calibration: Windows, test: Windows
) -> tuple[dict[str, float], dict[str, LayerStatistics]]:
    """All figures of one seed's models, and what their layers make of the test text."""
    own: dict[str, float] = {}
    found = {arm: layer_statistics(model, *test) for arm, model in models.items()}
    for arm, model in models.items():
        own |= model_values(model, arm, calibration, test) | confidence_values(found[arm], arm)
    return own | compared(own), found


def model_values(model: BlockwiseLM, arm: str, calibration: Windows, test: Windows) -> dict[str, float]:
    """One model by its thresholds, and at the compute of three layers."""
    ways = {
        threshold: execute(model, SHALLOW, test, threshold)
        for threshold in sorted({*THRESHOLDS, SETTINGS["threshold"]})
    }
    headline = ways[SETTINGS["threshold"]]
    confidence = layer_statistics(model, *calibration).max_prob[SHALLOW - 1]
    vocab_size = model.config.vocab_size
    three_layers = depth_flops(SHALLOW + 1, vocab_size) / depth_flops(LAYERS, vocab_size)
    share = share_within(model, SHALLOW, calibration, confidence, three_layers)
    budget = execute(model, SHALLOW, test, quantile_threshold(confidence, share))
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


# Figures ------------------------------------------------------------------------------------------------------------

WORDS = {"routed": "half of each exit", "lpt": "every layer (LPT)", "routing_aware": "routing aware"}


EXITS = {SHALLOW: "shallow exit", LAYERS: "deep exit"}


def reliability_figure(panels: dict[str, list[dict[str, LayerStatistics]]]) -> dict[str, Any]:
    """Reliability of each exit's confidence by loss; a panel holds what every seed's models make of the same text."""
    rows = []
    for panel, seeds in panels.items():
        for layer, exit in EXITS.items():
            for arm in seeds[0]:
                confidence, right = (
                    np.concatenate([getattr(found[arm], name)[layer - 1] for found in seeds])
                    for name in ("max_prob", "correct")
                )
                rows += [
                    [f"{panel}, {exit}", WORDS[arm], row["confidence"], row["agreement"]]
                    for row in reliability(confidence, right, PARAMS["bins"])
                ]
    return {
        "title": "Reliability of both exits by training loss",
        "rows": rows,
        "columns": ["text", "loss", "confidence", "accuracy"],
        "note": "Bins of equally many tokens, of all seeds together; below the dashed line an exit promises more than it keeps.",
        "plot": {"x": "confidence", "y": "accuracy", "group": "loss", "panel": "text", "diagonal": True},
    }


def exit_table(seeds: list[dict[str, float]], sizes: tuple[str, ...], arms: list[str]) -> dict[str, Any]:
    means = over_seeds(seeds)
    names = (
        "ppl.{}",
        "budget.ppl.{}",
        "shallow.{}",
        f"over.{{}}.{SHALLOW}",
        f"ece.{{}}.{SHALLOW}",
        f"over.{{}}.{LAYERS}",
        f"ece.{{}}.{LAYERS}",
    )
    rows = []
    for size in sizes:
        for arm in arms:
            cells = [means[f"{size}.{name.format(arm)}"] for name in names]
            rows.append([size, WORDS[arm], *([cell["value"], cell["low"], cell["high"]] for cell in cells)])
    return {
        "title": "Routed models by training loss",
        "rows": rows,
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
        "note": "Test text; mean and 95 % t interval over seeds. Over-confidence: mean confidence minus accuracy.",
    }


def difference_table(seeds: list[dict[str, float]], sizes: tuple[str, ...]) -> dict[str, Any]:
    """Arms against each other, at equal updates and at equal FLOPs of training."""
    means = over_seeds(seeds)
    measures = {
        "diff.{}": "nats at 0.8",
        "diff.budget_{}": "nats at three layers' compute",
        f"over.{{}}.{SHALLOW}": "over-confidence, shallow exit",
        f"ece.{{}}.{SHALLOW}": "ECE, shallow exit",
    }
    rows = []
    for size in sizes:
        for one, other in COMPARED:
            for key, words in measures.items():
                names = [f"{size}.{start}{key.format(f'{one}_minus_{other}')}" for start in ("", "flops.")]
                if set(names) <= set(means):
                    cells = [means[name] for name in names]
                    rows.append(
                        [
                            size,
                            f"{WORDS[one]} minus {WORDS[other]}",
                            words,
                            *([cell["value"], cell["low"], cell["high"]] for cell in cells),
                        ]
                    )
    return {
        "title": "Training losses against each other",
        "rows": rows,
        "columns": ["text", "losses", "measure", "equal updates", "equal training FLOPs"],
        "note": "Test text, paired by seed; mean and 95 % t interval over seeds. Equal FLOPs: those of four layers trained on the "
        "last exit.",
    }


def run(text: StudyText, protocol: str, arms: list[str]) -> Outcome:
    return run_published(arms) if protocol_of(text, protocol) == "published" else run_corrected(text, arms)


main = study_main(
    "routing_losses", __doc__.splitlines()[0], LOSSES, FLAWS, run, ("pangram", "sotu", "wikitext")
)

if __name__ == "__main__":
    main()
