"""Does routing by confidence beat both fixed depths? (Report character-systems, experiment 10.)

The routed model has exits after two and four layers, trained on half of each loss; beside it stand models
of fixed depth. Published: on a repeated pangram, judged by the weights of the best epoch. Corrected: real
text, five random seeds, weights and thresholds from calibration text, everything executed on test text. The
cut in scale is that of ``studies.common.layered_models``.

Equal compute is asked where routing can have it: with every token leaving early (two layers), with a
threshold from calibration text at which the FLOPs are those of three layers, and with nobody leaving (four
layers). Keys with ``flops.`` are of models that had the same FLOPs of training instead of the same number
of updates.

Shapes: N tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from offramp.models.native import BlockwiseLM
from studies.common.characters import Characters, Sizes, corrected_splits, published_1b
from studies.common.early_exit import (
    Routed,
    Windows,
    as_published,
    depth_flops,
    execute,
    execute_all_early,
    quantile_threshold,
    share_within,
)
from studies.common.layer_statistics import layer_statistics
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
from studies.common.workers import run_arms

FIXED = {"two_layers": 2, "three_layers": 3, "four_layers": 4}
ARMS = ("routed", *FIXED)
RANDOM_SEED = 0
"""Of the tokens that leave at random."""


class ConfidenceRouting(Settings):
    """The settings of this study."""

    shares: list[float]
    """Of tokens that leave early, for the curve of accuracy by compute."""


# Published --------------------------------------------------------------------------------------------------


def published(job: Job) -> Outcome:
    """The report's models on the pangram."""
    _, models, sizes = _given(job)
    data, routed = published_1b(sizes), {}
    values: dict[str, float] = {}
    trained_models = published_models(data, job.arms, job.seeds[0], models, job.processes)
    for arm, run in trained_models.items():
        statistics = layer_statistics(run.best, *data.windows("validation"))
        exit_after = models.shallow if arm == "routed" else len(statistics.loss)
        routed[arm] = as_published(statistics, exit_after, models.threshold)
        values |= {
            f"ppl.{arm}": routed[arm].ppl,
            f"accuracy.{arm}": routed[arm].accuracy,
            f"best_epoch.{arm}": run.best_epoch,
        }
        if arm == "routed":
            shallow, deep = statistics.loss[models.shallow - 1], statistics.loss[-1]
            draws = np.random.default_rng(RANDOM_SEED).random(len(routed[arm].early))
            at_random = float(np.where(draws < routed[arm].shallow, shallow, deep).mean())
            values |= {
                "shallow.routed": routed[arm].shallow,
                "compute.routed": routed[arm].layers,
                "layer_saving.routed": 1 - routed[arm].layers,
                "diff.routed_minus_random": routed[arm].nll - at_random,
                "shallow_exit.nll": float(shallow.mean()),
                "deep_exit.nll": float(deep.mean()),
            }
    if set(ARMS) <= set(routed):
        nll = {arm: way.nll for arm, way in routed.items()}
        values |= {f"diff.routed_minus_{fixed}": nll["routed"] - nll[fixed] for fixed in FIXED}
        values |= {
            "diff.two_minus_four_layers": nll["two_layers"] - nll["four_layers"],
            "diff.shallow_exit_minus_two_layers": values["shallow_exit.nll"] - nll["two_layers"],
            "diff.deep_exit_minus_four_layers": values["deep_exit.nll"] - nll["four_layers"],
        }
    return Outcome([values])


# Corrected --------------------------------------------------------------------------------------------------


def corrected(job: Job) -> Outcome:
    """Models of every random seed on real text.

    A whole run trains the models of experiment 11 on the way, so that each of the two studies finds what it
    needs.
    """
    settings, models, sizes = _given(job)
    results = trained(
        job.text,
        "routing",
        list(dict.fromkeys([*job.arms, *(LOSS_ARMS if set(job.arms) == set(ARMS) else ())])),
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
    for (size, place), values in zip(places, run_arms(size_values, jobs, job.processes)):
        rows[place] |= prefixed(f"{size}.", values)
    for place, row in enumerate(rows):
        for size in names:
            for arm in job.arms:
                row |= training_values(results[size, arm], size, arm, place)
    whole = set(ARMS) <= set(job.arms) and len(rows) > 1
    return Outcome(rows, report(rows, names, settings.shares) if whole else {})


def size_values(
    data: Characters,
    by_arm: Mapping[str, BlockwiseLM],
    flops_by_arm: Mapping[str, BlockwiseLM],
    models: LayeredModels,
    settings: ConfidenceRouting,
) -> dict[str, float]:
    """All figures of one random seed's models of one size of text, those of equal FLOPs under ``flops.``."""
    calibration, test = data.windows("calibration"), data.windows("test")
    out = seed_values(by_arm, calibration, test, models)
    out |= prefixed("flops.", seed_values(flops_by_arm, calibration, test, models))
    if "routed" in by_arm:
        out |= curve_values(by_arm["routed"], calibration, test, models.shallow, settings.shares)
    return out


def seed_values(
    by_arm: Mapping[str, BlockwiseLM], calibration: Windows, test: Windows, models: LayeredModels
) -> dict[str, float]:
    """All figures of one random seed's models.

    ``executed``: FLOPs of use as a share of those of four layers, read out once.
    """
    vocab_size = next(iter(by_arm.values())).config.vocab_size
    whole = depth_flops(models.layers, vocab_size, models)
    executed = {arm: depth_flops(depth, vocab_size, models) / whole for arm, depth in FIXED.items()}
    ways: dict[str, Routed] = {}
    out: dict[str, float] = {}
    for arm in [arm for arm in FIXED if arm in by_arm]:
        ways[arm] = execute(by_arm[arm], FIXED[arm] - 1, test)
        out |= {
            f"ppl.{arm}": ways[arm].ppl,
            f"accuracy.{arm}": ways[arm].accuracy,
            f"executed.{arm}": executed[arm],
        }
    if "routed" in by_arm:
        out |= routed_values(by_arm["routed"], calibration, test, models, executed["three_layers"])
    if set(ARMS) <= set(by_arm):
        nll = {arm: way.nll for arm, way in ways.items()}
        nll |= {
            name: math.log(out[f"ppl.{name}"]) for name in ("routed", "budget", "shallow_exit", "deep_exit")
        }
        out |= {f"diff.routed_minus_{arm}": nll["routed"] - nll[arm] for arm in ways}
        out |= {
            "diff.budget_minus_three_layers": nll["budget"] - nll["three_layers"],
            "diff.shallow_exit_minus_two_layers": nll["shallow_exit"] - nll["two_layers"],
            "diff.deep_exit_minus_four_layers": nll["deep_exit"] - nll["four_layers"],
            "diff.two_minus_four_layers": nll["two_layers"] - nll["four_layers"],
        }
    return out


def routed_values(
    model: BlockwiseLM, calibration: Windows, test: Windows, models: LayeredModels, budget: float
) -> dict[str, float]:
    """The routed model at the published threshold, at the compute ``budget``, without a choice, and at
    random."""
    exit_after = models.shallow
    out: dict[str, float] = {}
    confidence = layer_statistics(model, *calibration).max_prob[exit_after - 1]
    share = share_within(model, exit_after, calibration, confidence, budget)
    at_budget = quantile_threshold(confidence, share)
    ways = {
        "routed": execute(model, exit_after, test, models.threshold),
        "budget": execute(model, exit_after, test, at_budget),
        "shallow_exit": execute_all_early(model, exit_after, test),
        "deep_exit": execute(model, exit_after, test),
    }
    for name, way in ways.items():
        out |= {f"ppl.{name}": way.ppl, f"accuracy.{name}": way.accuracy, f"executed.{name}": way.flops}
    for name in ("routed", "budget"):
        at_random = execute(model, exit_after, test, leaves=drawn(ways[name]))
        out |= {
            f"shallow.{name}": ways[name].shallow,
            f"compute.{name}": ways[name].layers,
            f"layer_saving.{name}": 1 - ways[name].layers,
            f"flop_saving.{name}": 1 - ways[name].flops,
            f"diff.{name}_minus_random": ways[name].nll - at_random.nll,
        }
    return out | {"budget.threshold": at_budget}


def curve_values(
    model: BlockwiseLM, calibration: Windows, test: Windows, exit_after: int, shares: Sequence[float]
) -> dict[str, float]:
    """The routed model with thresholds at which given shares of calibration text leave."""
    confidence = layer_statistics(model, *calibration).max_prob[exit_after - 1]
    out: dict[str, float] = {}
    for share in shares:
        way = execute(model, exit_after, test, quantile_threshold(confidence, share))
        out |= {
            f"curve.executed.{share}": way.flops,
            f"curve.accuracy.{share}": way.accuracy,
            f"curve.ppl.{share}": way.ppl,
        }
    return out


def drawn(way: Routed) -> np.ndarray:
    """As many tokens as leave by confidence, at random: bool (N,)."""
    leaves = np.zeros(len(way.early), bool)
    leaves[np.random.default_rng(RANDOM_SEED).permutation(len(leaves))[: way.early.sum()]] = True
    return leaves


# Both -------------------------------------------------------------------------------------------------------


def _given(job: Job) -> tuple[ConfidenceRouting, LayeredModels, Sizes]:
    """Settings of this study, of the models and of the texts' sizes."""
    return (
        ConfidenceRouting.of(job.settings),
        LayeredModels.of(job.shared["layered_models"]),
        Sizes.of(job.shared["characters"]),
    )


# Figures ----------------------------------------------------------------------------------------------------


def report(rows: list[dict[str, float]], sizes: Sequence[str], shares: Sequence[float]) -> dict[str, Any]:
    """The plot and the table, of rows of all arms."""
    means = over_seeds(rows)
    return {"compute": compute_figure(means, sizes, shares), "equal compute": equal_table(means, sizes)}


def compute_figure(
    means: Mapping[str, dict[str, float]], sizes: Sequence[str], shares: Sequence[float]
) -> dict[str, Any]:
    """Accuracy against executed FLOPs: the routed model by thresholds, and models of fixed depth."""
    rows = []
    for size in sizes:
        for share in shares:
            x, y = (means[f"{size}.curve.{name}.{share}"] for name in ("executed", "accuracy"))
            rows.append([f"{size} characters", "routed", _cell(x), _cell(y)])
        for start, group in (("", "fixed depth"), ("flops.", "fixed depth, equal training FLOPs")):
            rows += [
                [
                    f"{size} characters",
                    group,
                    means[f"{size}.executed.{arm}"]["value"],
                    _cell(means[f"{size}.{start}accuracy.{arm}"]),
                ]
                for arm in FIXED
            ]
    return {
        "title": "Accuracy by compute",
        "columns": ["text", "model", "FLOPs of use", "accuracy"],
        "rows": rows,
        "note": "Executed on test text; thresholds from calibration text, mean and 95 % t interval over "
        "seeds. FLOPs as a share of those of four layers; fixed depths are models of two, three and four "
        "layers.",
        "plot": {
            "x": "FLOPs of use",
            "y": "accuracy",
            "group": "model",
            "panel": "text",
            "points": ["fixed depth", "fixed depth, equal training FLOPs"],
        },
    }


def equal_table(means: Mapping[str, dict[str, float]], sizes: Sequence[str]) -> dict[str, Any]:
    """Routing against fixed depths where both have the same compute."""
    words = {
        "diff.shallow_exit_minus_two_layers": "two layers: everybody leaves",
        "diff.budget_minus_three_layers": "three layers: threshold from calibration text",
        "diff.deep_exit_minus_four_layers": "four layers: nobody leaves",
    }
    rows = [
        [size, name, *(_cell(means[f"{size}.{start}{key}"]) for start in ("", "flops."))]
        for size in sizes
        for key, name in words.items()
    ]
    return {
        "title": "Routed model minus fixed depth at equal compute of use (nats, negative: routing is better)",
        "note": "Test text, paired by seed; mean and 95 % t interval over seeds.",
        "columns": ["text", "fixed depth", "equal updates", "equal training FLOPs"],
        "rows": rows,
    }


def _cell(value: Mapping[str, float]) -> list[float]:
    return [value["value"], value["low"], value["high"]]
