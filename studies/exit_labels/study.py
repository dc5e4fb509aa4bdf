"""Which label should an exit classifier learn? Report exit-labels.

Published: the report's own procedure with its flaws (study.yaml, ``published.py``). Corrected: word-level
models without them, a linear classifier per label fitted until it converges on calibration documents, a
threshold from calibration documents that did not fit it, and routing of test documents by the executor that
really skips.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from offramp.exits.classifier import ExitClassifier
from offramp.exits.labels import label
from offramp.routing.cost import executed_flops, full_depth_flops, layer_saving
from offramp.routing.executor import Executor
from offramp.routing.policies import exits_by_share
from offramp.routing.split import run_split
from offramp.states.store import States
from offramp.training.exit_classifiers import fit_classifier
from offramp.training.exits import split_calibration
from studies.common.exit_choice import ConfidencePolicy
from studies.common.first_block import BlockTraining, first_block
from studies.common.product_path import SmallModel
from studies.common.study import Job, Outcome
from studies.common.word_models import word_models
from studies.exit_labels.published import ARMS, Procedure, published_values

__all__ = ["ARMS", "corrected", "published"]


def published(job: Job) -> Outcome:
    """The report's procedure from the first block on, its values and its table of arms and of epochs."""
    sizes, settings = job.shared["first_block"], job.settings["published"]
    block = first_block(job.text, job.cache, sizes, job.seeds[0])
    procedure = Procedure(BlockTraining.of(sizes, job.seeds[0]), **settings)
    values, rows = published_values(block, procedure, job.arms, job.cache)
    figures = {"published_arms": rows, "published_epochs": block.block0.meta["curve"]}
    return Outcome([values | comparisons(values, 1 - procedure.hard_ratio)], figures)


def corrected(job: Job) -> Outcome:
    """Every label on models without the report's flaws, and a table of arms by random seed."""
    models = word_models(job.text, job.cache, job.shared["word_models"], job.seeds)
    rows = [corrected_values(model, job.settings["corrected"], job.arms) for model in models]
    shown = ("shallow_ratio", "layer_saving", "flop_saving", "final_ppl", "random_ppl", "accuracy")
    table = [
        {"seed": seed, "arm": arm, **{name: values[f"{name}.{arm}"] for name in shown}}
        for seed, values in zip(job.seeds, rows, strict=True)
        for arm in job.arms
    ]
    return Outcome(rows, {"corrected_arms": table})


def corrected_values(words: SmallModel, settings: Mapping[str, Any], arms: Sequence[str]) -> dict[str, float]:
    """All values of the corrected protocol for one random seed."""
    values = {
        "block0_val_ppl": _ppl(words.calibration.column("loss_0")),
        "block0_heldout_ppl": _ppl(words.test.column("loss_0")),
        "full_heldout_ppl": _ppl(words.test.column("loss_1")),
    }
    executor = Executor(words.load())
    for arm in arms:
        of_arm = _corrected_arm(arm, words, executor, settings)
        values |= {f"{name}.{arm}": value for name, value in of_arm.items()}
    return values | comparisons(values, settings["exit_ratio"])


def _corrected_arm(
    arm: str, words: SmallModel, executor: Executor, settings: Mapping[str, Any]
) -> dict[str, float]:
    """Values of one arm, without its name; beside routing by it stand random exits of as many tokens."""
    classifier, threshold, values = _fit_arm(arm, words.calibration, words.seed, settings)
    policy = ConfidencePolicy(executor.model, classifier, threshold)
    windows, batch = words.windows("test"), settings["routing_batch_size"]
    everything = torch.arange(len(windows))
    routed = run_split(executor, windows, everything, batch_size=batch, policy=policy, name=arm)
    leaving = int((routed.exit == 0).sum())
    drawn = exits_by_share(np.random.default_rng(words.seed).random((1, len(routed.exit))), [leaving])
    random = run_split(executor, windows, everything, batch_size=batch, exits=drawn, name=f"{arm}, at random")
    model, layers = executor.model, executor.model.config.block_layers
    shallow = leaving / len(routed.exit)
    flops = executed_flops(model, routed.work, policy.flops_per_token)
    return values | {
        "threshold": threshold,
        "final_ppl": _ppl(routed.loss),
        "random_ppl": _ppl(random.loss),
        "accuracy": float((routed.argmax == words.test.column("target")).mean()),
        "shallow_ratio": shallow,
        "layer_saving": shallow * layers[1] / sum(layers),
        "executed_layer_saving": layer_saving(model, routed.work),
        "flop_saving": 1 - flops / full_depth_flops(model, routed.work.tokens, windows.window),
    }


def _fit_arm(
    arm: str, calibration: States, seed: int, settings: Mapping[str, Any]
) -> tuple[ExitClassifier | None, float, dict[str, float]]:
    """The arm's classifier, the threshold by which ``exit_ratio`` of held-out calibration tokens leave, and
    its values."""
    fitting = split_calibration(calibration.column("document"), seed) == 0
    values: dict[str, float] = {}
    if arm == "softmax":
        classifier, confidence = None, torch.from_numpy(calibration.column("max_prob_0").copy())
    else:
        inputs, labels = calibration.hidden(0), torch.from_numpy(label(calibration, 0, arm, 0.0))
        parts = [(inputs[rows], labels[rows]) for rows in (fitting, ~fitting)]
        fit = fit_classifier(
            *parts,
            arm,
            [],
            learning_rate=settings["learning_rate"],
            batch_size=settings["batch_size"],
            max_epochs=settings["max_epochs"],
            patience=settings["patience"],
            seed=seed,
            name=f"exit classifier, {arm}",
        )
        classifier = fit.classifier
        with torch.no_grad():
            confidence = torch.sigmoid(classifier(inputs))
        values = {
            "label_mean": float(labels.mean()),
            "exit_loss_first": fit.curve[0]["fit_loss"],
            "exit_loss_last": fit.curve[-1]["fit_loss"],
        }
    return classifier, float(np.quantile(confidence.numpy()[~fitting], 1 - settings["exit_ratio"])), values


def comparisons(values: Mapping[str, float], exit_ratio: float) -> dict[str, float]:
    """What both protocols derive from those arms that there are; ``exit_ratio``: of the tokens, as
    intended."""
    ppl = {arm: values[f"final_ppl.{arm}"] for arm in ARMS if f"final_ppl.{arm}" in values}
    out = {}
    if "softmax" in ppl:
        out["exit_rate_drift.softmax"] = values["shallow_ratio.softmax"] - exit_ratio
    for arm in ("loss", "softmax"):
        if {arm, "distill"} <= ppl.keys():
            out[f"ppl_ratio.{arm}_over_distill"] = ppl[arm] / ppl["distill"]
    if {"softmax", "distill"} <= ppl.keys():
        gain = values["layer_saving.softmax"] - values["layer_saving.distill"]
        out["saving_gain.softmax_over_distill"] = gain
    for arm, final in ppl.items():
        out[f"ratio.final_over_block0.{arm}"] = final / values["block0_val_ppl"]
        out[f"ratio.final_over_block0_same_set.{arm}"] = final / values["block0_heldout_ppl"]
    return out


def _ppl(loss: np.ndarray) -> float:
    return math.exp(loss.mean(dtype=np.float64))
