"""Seed 001, experiment 10: does routing by confidence beat both fixed depths?

``python -m studies.confidence_routing.study --corpus pangram`` reruns it as published, ``--corpus sotu`` (or wikitext, or text
of your own) as corrected: real text, five seeds, weights and thresholds from calibration text, everything executed on test text.
The routed model has exits after two and four layers, trained on half of each loss; beside it stand models of fixed depth.

Equal compute is asked where routing can have it: with every token leaving early (two layers), with a threshold from calibration
text at which the FLOPs are those of three layers, and with nobody leaving (four layers). Keys with ``flops.`` are of models that
had the same FLOPs of training instead of the same number of updates.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

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
    Routed,
    Windows,
    as_published,
    depth_flops,
    execute,
    execute_all_early,
    quantile_threshold,
    share_within,
)
from studies.common.results import over_seeds, study_params
from studies.common.text import StudyText
from studies.measures.layer_contribution import layer_statistics

FLAWS = [
    "F9 train and validation text are two repeated sentences, not WikiText-2; the best epoch is the first",
    "F17 the headline is of the best epoch, the sweep of thresholds of the last one",
    "F18 every layer is computed for every token; the compute is a formula over layers",
]
PARAMS: dict[str, Any] = study_params("confidence_routing")
FIXED = {"two_layers": 2, "three_layers": 3, "four_layers": 4}
ARMS = ("routed", *FIXED)
RANDOM_SEED = 0


def run_published(arms: list[str]) -> Outcome:
    data, values, found = published_1b(), {}, {}
    for arm, run in published_runs(data, arms, PUBLISHED_SEED).items():
        statistics = layer_statistics(run.best, *data.windows("validation"))
        depth = len(statistics.loss)
        found[arm] = as_published(statistics, SHALLOW if arm == "routed" else depth, SETTINGS["threshold"])
        values |= {
            f"ppl.{arm}": found[arm].ppl,
            f"accuracy.{arm}": found[arm].accuracy,
            f"best_epoch.{arm}": run.best_epoch,
        }
        if arm == "routed":
            random = np.random.default_rng(RANDOM_SEED).random(len(found[arm].early)) < found[arm].shallow
            at_random = float(np.where(random, statistics.loss[SHALLOW - 1], statistics.loss[-1]).mean())
            values |= {
                "shallow.routed": found[arm].shallow,
                "compute.routed": found[arm].layers,
                "layer_saving.routed": 1 - found[arm].layers,
                "diff.routed_minus_random": found[arm].nll - at_random,
                "shallow_exit.nll": float(statistics.loss[SHALLOW - 1].mean()),
                "deep_exit.nll": float(statistics.loss[-1].mean()),
            }
    if set(ARMS) <= set(found):
        values |= {f"diff.routed_minus_{fixed}": found["routed"].nll - found[fixed].nll for fixed in FIXED}
        values |= {
            "diff.two_minus_four_layers": found["two_layers"].nll - found["four_layers"].nll,
            "diff.shallow_exit_minus_two_layers": values["shallow_exit.nll"] - found["two_layers"].nll,
            "diff.deep_exit_minus_four_layers": values["deep_exit.nll"] - found["four_layers"].nll,
        }
    return Outcome(values, None, {})


def run_corrected(text: StudyText, arms: list[str], root: Path = Path(".")) -> Outcome:
    """Trains the models of experiment 11 on the way, so that each study finds what it needs."""
    models = trained(text, "depth_routing", [*arms, *LOSSES] if set(arms) == set(ARMS) else arms, root)
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
    for place, found in enumerate(evaluated(size_values, jobs)):
        seeds[place % len(SEEDS)] |= prefixed(f"{jobs[place][1]}.", found)
    for place, values in enumerate(seeds):
        for size in sizes:
            for arm in arms:
                values |= training_values(models[size, arm], size, arm, place)
    return Outcome(None, seeds, report(seeds, sizes, arms))


def size_values(
    text: StudyText, size: str, models: dict[str, BlockwiseLM], flops_models: dict[str, BlockwiseLM]
) -> dict[str, float]:
    """All figures of one seed's models of one size of text, those of equal FLOPs under ``flops.``."""
    data = corrected(text, size)
    calibration, test = data.windows("calibration"), data.windows("test")
    out = seed_values(models, calibration, test, SETTINGS["threshold"])
    out |= prefixed("flops.", seed_values(flops_models, calibration, test, SETTINGS["threshold"]))
    return out | (curve_values(models["routed"], calibration, test) if "routed" in models else {})


def seed_values(
    models: dict[str, BlockwiseLM], calibration: Windows, test: Windows, threshold: float
) -> dict[str, float]:
    """All figures of one seed's models. ``executed``: FLOPs of use as a share of those of four layers, read out once."""
    vocab_size = next(iter(models.values())).config.vocab_size
    executed = {
        arm: depth_flops(depth, vocab_size) / depth_flops(LAYERS, vocab_size) for arm, depth in FIXED.items()
    }
    found, out = {}, {}
    for arm in [arm for arm in FIXED if arm in models]:
        found[arm] = execute(models[arm], FIXED[arm] - 1, test)
        out |= {
            f"ppl.{arm}": found[arm].ppl,
            f"accuracy.{arm}": found[arm].accuracy,
            f"executed.{arm}": executed[arm],
        }
    if "routed" in models:
        out |= routed_values(models["routed"], calibration, test, threshold, executed["three_layers"])
    if set(ARMS) <= set(models):
        nll = {arm: way.nll for arm, way in found.items()}
        ways = {
            name: math.log(out[f"ppl.{name}"]) for name in ("routed", "budget", "shallow_exit", "deep_exit")
        }
        out |= {f"diff.routed_minus_{arm}": ways["routed"] - value for arm, value in nll.items()}
        out |= {
            "diff.budget_minus_three_layers": ways["budget"] - nll["three_layers"],
            "diff.shallow_exit_minus_two_layers": ways["shallow_exit"] - nll["two_layers"],
            "diff.deep_exit_minus_four_layers": ways["deep_exit"] - nll["four_layers"],
            "diff.two_minus_four_layers": nll["two_layers"] - nll["four_layers"],
        }
    return out


def routed_values(
    model: BlockwiseLM, calibration: Windows, test: Windows, threshold: float, budget: float
) -> dict[str, float]:
    """The routed model at the published threshold, at the compute ``budget``, without a choice, and at random."""
    confidence, out = layer_statistics(model, *calibration).max_prob[SHALLOW - 1], {}
    at_budget = quantile_threshold(confidence, share_within(model, SHALLOW, calibration, confidence, budget))
    ways = {
        "routed": execute(model, SHALLOW, test, threshold),
        "budget": execute(model, SHALLOW, test, at_budget),
        "shallow_exit": execute_all_early(model, SHALLOW, test),
        "deep_exit": execute(model, SHALLOW, test),
    }
    for name, way in ways.items():
        out |= {f"ppl.{name}": way.ppl, f"accuracy.{name}": way.accuracy, f"executed.{name}": way.flops}
    for name in ("routed", "budget"):
        at_random = execute(model, SHALLOW, test, leaves=drawn(ways[name]))
        out |= {
            f"shallow.{name}": ways[name].shallow,
            f"compute.{name}": ways[name].layers,
            f"layer_saving.{name}": 1 - ways[name].layers,
            f"flop_saving.{name}": 1 - ways[name].flops,
            f"diff.{name}_minus_random": ways[name].nll - at_random.nll,
        }
    return out | {"budget.threshold": at_budget}


def curve_values(model: BlockwiseLM, calibration: Windows, test: Windows) -> dict[str, float]:
    """The routed model with thresholds at which given shares of calibration text leave."""
    confidence, out = layer_statistics(model, *calibration).max_prob[SHALLOW - 1], {}
    for share in PARAMS["shares"]:
        way = execute(model, SHALLOW, test, quantile_threshold(confidence, share))
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


# Figures ------------------------------------------------------------------------------------------------------------


def report(seeds: list[dict[str, float]], sizes: tuple[str, ...], arms: list[str]) -> dict[str, Any]:
    if not set(ARMS) <= set(arms):
        return {}
    means = over_seeds(seeds)
    return {"compute": compute_figure(means, sizes), "equal compute": equal_table(means, sizes)}


def compute_figure(means: dict[str, dict[str, float]], sizes: tuple[str, ...]) -> dict[str, Any]:
    """Accuracy against executed FLOPs: the routed model by thresholds, and models of fixed depth."""
    rows = []
    for size in sizes:
        for share in PARAMS["shares"]:
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
        "note": "Executed on test text; thresholds from calibration text, mean and 95 % t interval over seeds. FLOPs as a "
        "share of those of four layers; fixed depths are models of two, three and four layers.",
        "plot": {
            "x": "FLOPs of use",
            "y": "accuracy",
            "group": "model",
            "panel": "text",
            "points": ["fixed depth", "fixed depth, equal training FLOPs"],
        },
    }


def equal_table(means: dict[str, dict[str, float]], sizes: tuple[str, ...]) -> dict[str, Any]:
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


def _cell(value: dict[str, float]) -> list[float]:
    return [value["value"], value["low"], value["high"]]


def run(text: StudyText, protocol: str, arms: list[str]) -> Outcome:
    return run_published(arms) if protocol_of(text, protocol) == "published" else run_corrected(text, arms)


main = study_main(
    "confidence_routing", __doc__.splitlines()[0], ARMS, FLAWS, run, ("pangram", "sotu", "wikitext")
)

if __name__ == "__main__":
    main()
