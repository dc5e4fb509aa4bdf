"""Does routing by confidence beat both fixed depths? (Report character-systems, experiment 10.)

The routed model has exits after two and four layers, trained on half of each loss; beside it stand models
of fixed depth, and one of the soft routing that the report rejects without a figure. Published: on a
repeated pangram, judged by the weights of the best epoch. Corrected: real text, five random seeds, weights
and thresholds from calibration text, everything executed on test text. The cut in scale is that of
``studies.common.layered_models``.

Equal compute is asked where routing can have it: with every token leaving early (two layers), with a
threshold from calibration text at which the FLOPs are those of three layers, and with nobody leaving (four
layers). Keys with ``flops.`` are of models that had the same FLOPs of training instead of the same number
of updates.

Whether the paths specialise, as the report says, is asked of the surer half of the tokens and of the other
(``path_values``), and against models of fixed depth there. What confidence is worth stands between random
exits and two oracles, at several shares of tokens that leave.

Shapes: N tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from offramp.exits.ranking import most_confident
from offramp.models.native import BlockwiseLM
from studies.common.characters import Characters, Sizes, corrected_splits, published_1b
from studies.common.early_exit import (
    Routed,
    Windows,
    as_published,
    depth_flops,
    execute,
    execute_all_early,
    expected_loss,
    path_values,
    quantile_threshold,
    random_exits_nll,
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
    update_flops,
)
from studies.common.results import over_seeds
from studies.common.settings import Settings
from studies.common.study import Job, Outcome
from studies.common.workers import run_arms

FIXED = {"two_layers": 2, "three_layers": 3, "four_layers": 4}
ARMS = ("routed", *FIXED, "soft")


class ConfidenceRouting(Settings):
    """The settings of this study."""

    shares: list[float]
    """Of tokens that leave early, for the curve of accuracy by compute and for what confidence is worth."""


# Published --------------------------------------------------------------------------------------------------


def published(job: Job) -> Outcome:
    """The report's models on the pangram."""
    settings, models, sizes = _given(job)
    data, ways, statistics = published_1b(sizes), {}, {}
    values: dict[str, float] = {}
    trained_models = published_models(data, job.arms, job.seeds[0], models, job.processes)
    for arm, run in trained_models.items():
        statistics[arm] = layer_statistics(run.best, *data.windows("validation"))
        depth = len(statistics[arm].loss)
        exit_after = depth if arm in FIXED else models.shallow
        ways[arm] = as_published(statistics[arm], exit_after, models.threshold)
        values |= {
            f"ppl.{arm}": ways[arm].ppl,
            f"accuracy.{arm}": ways[arm].accuracy,
            f"best_epoch.{arm}": run.best_epoch,
        }
        values |= size_of(run.best, arm, models)
    if "routed" in ways:
        routed, of_routed = ways["routed"], statistics["routed"]
        shallow, deep = of_routed.loss[models.shallow - 1], of_routed.loss[-1]
        values |= {
            "shallow.routed": routed.shallow,
            "compute.routed": routed.layers,
            "layer_saving.routed": 1 - routed.layers,
            "diff.routed_minus_random": routed.nll - expected_loss(shallow, deep, routed.shallow),
            "shallow_exit.nll": float(shallow.mean()),
            "deep_exit.nll": float(deep.mean()),
            "training_cost.routed": training_cost(data, models),
        }
        values |= signal_values(of_routed, models.shallow, named(settings.shares))
        values |= path_values(of_routed, models.shallow)
    if set(ARMS) <= set(ways):
        nll = {arm: way.nll for arm, way in ways.items()}
        nll |= {exit: values[f"{exit}.nll"] for exit in ("shallow_exit", "deep_exit")}
        values |= compared(nll) | beside_others(statistics, models.shallow)
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
    cost = {size: training_cost(data[size], models) for size in names if "routed" in job.arms}
    for place, row in enumerate(rows):
        row |= {f"{size}.training_cost.routed": ratio for size, ratio in cost.items()}
        for size in names:
            for arm in job.arms:
                row |= training_values(results[size, arm], size, arm, place)
                row |= prefixed(f"{size}.", size_of(results[size, arm].models[place], arm, models))
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
    out = seed_values(by_arm, calibration, test, models, settings.shares)
    flops_values = seed_values(flops_by_arm, calibration, test, models, settings.shares)
    out |= prefixed("flops.", flops_values)
    if "routed" in by_arm:
        out |= curve_values(by_arm["routed"], calibration, test, models.shallow, settings.shares)
    return out


def seed_values(
    by_arm: Mapping[str, BlockwiseLM],
    calibration: Windows,
    test: Windows,
    models: LayeredModels,
    shares: Sequence[float],
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
    statistics = {arm: layer_statistics(model, *test) for arm, model in by_arm.items()}
    if "soft" in by_arm:
        soft = execute(by_arm["soft"], models.shallow, test, models.threshold)
        out |= {"ppl.soft": soft.ppl, "accuracy.soft": soft.accuracy}
    if "routed" in by_arm:
        budget, of_routed = executed["three_layers"], statistics["routed"]
        out |= routed_values(by_arm["routed"], calibration, test, of_routed, models, budget)
        out |= signal_values(of_routed, models.shallow, named(shares))
        out |= path_values(of_routed, models.shallow)
    if set(ARMS) <= set(by_arm):
        nll = {arm: way.nll for arm, way in ways.items()}
        nll |= {
            name: math.log(out[f"ppl.{name}"]) for name in ("routed", "budget", "shallow_exit", "deep_exit")
        }
        out |= compared(nll) | beside_others(statistics, models.shallow)
        out["diff.budget_minus_three_layers"] = nll["budget"] - nll["three_layers"]
    return out


def routed_values(
    model: BlockwiseLM,
    calibration: Windows,
    test: Windows,
    statistics: LayerStatistics,
    models: LayeredModels,
    budget: float,
) -> dict[str, float]:
    """The routed model at the published threshold, at the compute ``budget``, without a choice, and at
    random; ``statistics`` are those of the test text."""
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
        at_random = random_exits_nll(model, exit_after, test, statistics, ways[name].shallow)
        out |= {
            f"shallow.{name}": ways[name].shallow,
            f"compute.{name}": ways[name].layers,
            f"layer_saving.{name}": 1 - ways[name].layers,
            f"flop_saving.{name}": 1 - ways[name].flops,
            f"diff.{name}_minus_random": ways[name].nll - at_random,
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


# Both -------------------------------------------------------------------------------------------------------


def _given(job: Job) -> tuple[ConfidenceRouting, LayeredModels, Sizes]:
    """Settings of this study, of the models and of the texts' sizes."""
    return (
        ConfidenceRouting.of(job.settings),
        LayeredModels.of(job.shared["layered_models"]),
        Sizes.of(job.shared["characters"]),
    )


def named(shares: Sequence[float]) -> dict[str, float]:
    """Shares of tokens that leave, as keys name them."""
    return {str(share): share for share in shares}


def size_of(model: BlockwiseLM, arm: str, models: LayeredModels) -> dict[str, float]:
    """Parameters of a model, and where everyone runs all its layers, how many of the four these are."""
    out = {f"parameters.{arm}": float(sum(weight.numel() for weight in model.parameters()))}
    return out | ({f"compute.{arm}": FIXED[arm] / models.layers} if arm in FIXED else {})


def training_cost(data: Characters, models: LayeredModels) -> float:
    """FLOPs of an update of the routed model, as a multiple of those of four layers trained on their last
    exit."""
    return update_flops("routed", data, models) / update_flops("four_layers", data, models)


def compared(nll: Mapping[str, float]) -> dict[str, float]:
    """The routed model, as it routes and by its exits, against models of fixed depth: differences in nats.

    ``worse.a``: by which share the perplexity of a is above that of the routed model; ``better.a``: by which
    share that of the routed model is below a's. ``nll`` is by arm, and of both exits.
    """
    out = {f"diff.routed_minus_{arm}": nll["routed"] - nll[arm] for arm in FIXED}
    out |= {f"worse.{arm}": math.exp(nll[arm] - nll["routed"]) - 1 for arm in FIXED}
    out |= {f"better.{arm}": 1 - math.exp(nll["routed"] - nll[arm]) for arm in FIXED}
    return out | {
        "diff.shallow_exit_minus_two_layers": nll["shallow_exit"] - nll["two_layers"],
        "diff.deep_exit_minus_four_layers": nll["deep_exit"] - nll["four_layers"],
        "diff.two_minus_four_layers": nll["two_layers"] - nll["four_layers"],
    }


def beside_others(statistics: Mapping[str, LayerStatistics], exit_after: int) -> dict[str, float]:
    """Each exit against the model of its depth, and these against each other, on the half of the tokens that
    confidence sends there; and the exits of soft routing against the routed model's, on all. In nats."""
    soft = statistics["soft"].loss - statistics["routed"].loss
    routed, two, four = (
        statistics["routed"],
        statistics["two_layers"].loss[-1],
        statistics["four_layers"].loss[-1],
    )
    surer = most_confident(routed.max_prob[exit_after - 1], len(two) // 2)
    shallow, deep = routed.loss[exit_after - 1] - two, routed.loss[-1] - four
    out = {
        "paths.shallow_minus_two_layers": shallow[surer].mean(),
        "paths.deep_minus_four_layers": deep[~surer].mean(),
        "surer.four_minus_two_layers": (four - two)[surer].mean(),
        "others.two_minus_four_layers": (two - four)[~surer].mean(),
        "soft.shallow_exit_minus_routed": soft[exit_after - 1].mean(),
        "soft.deep_exit_minus_routed": soft[-1].mean(),
    }
    return {key: float(value) for key, value in out.items()}


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
