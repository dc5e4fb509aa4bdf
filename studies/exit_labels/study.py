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
from offramp.exits.ranking import most_confident
from offramp.routing.cost import executed_flops, full_depth_flops, layer_saving
from offramp.routing.executor import Executor
from offramp.routing.policies import exits_by_share
from offramp.routing.split import run_split
from offramp.states.store import States
from offramp.training.exit_classifiers import fit_classifier
from offramp.training.exits import split_calibration
from offramp.training.inputs import HeldInputs
from studies.common.exit_choice import ConfidencePolicy
from studies.common.first_block import first_block
from studies.common.product_path import SmallModel
from studies.common.study import Job, Outcome
from studies.common.tables import Values
from studies.common.word_models import word_models
from studies.exit_labels.published import ARMS, REPORT_ARMS, Procedure, leaving_values, published_values

__all__ = ["ARMS", "corrected", "published"]


def published(job: Job) -> Outcome:
    """The report's procedure from the first block on, its values and its table of arms and of epochs.

    No rows where none of the report's arms is wanted.
    """
    arms = [arm for arm in job.arms if arm in REPORT_ARMS]
    if not arms:
        return Outcome([])
    sizes, seed = job.shared["first_block"], job.seeds[0]
    block = first_block(job.text, job.cache, sizes, seed)
    procedure = Procedure.of(sizes, job.settings["published"], job.text.corpus, seed)
    values, rows = published_values(block, procedure, arms, job.cache)
    figures = {"published_arms": rows, "published_epochs": block.block0.meta["curve"]}
    return Outcome([values | comparisons(values, 1 - procedure.hard_ratio)], figures)


def corrected(job: Job) -> Outcome:
    """Every label on models without the report's flaws, and a table of arms by random seed."""
    models = word_models(job.text, job.cache, job.shared["word_models"], job.seeds)
    rows = [corrected_values(model, job.settings["corrected"], job.arms) for model in models]
    shown = (
        "shallow_ratio",
        "layer_saving",
        "flop_saving",
        "final_ppl",
        "random_ppl",
        "attained",
        "accuracy",
    )
    table = [
        {"seed": seed, "arm": arm, **{name: values[f"{name}.{arm}"] for name in shown}}
        for seed, values in zip(job.seeds, rows, strict=True)
        for arm in job.arms
    ]
    return Outcome(rows, {"corrected_arms": table})


def corrected_values(words: SmallModel, settings: Mapping[str, Any], arms: Sequence[str]) -> Values:
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


def _corrected_arm(arm: str, words: SmallModel, executor: Executor, settings: Mapping[str, Any]) -> Values:
    """Values of one arm, without its name; beside routing by it stand random exits of as many tokens."""
    classifier, threshold, values = _fit_arm(arm, words.calibration, words.seed, settings)
    sure, right = _confidence(words.test, classifier).numpy(), label(words.test, 0, "correct", 0.0)[:, 0] == 1
    values |= leaving_values(sure, threshold, words.test.column("loss_0").astype(np.float64), right)
    values["block1_val_ppl"] = _ppl(words.test.column("loss_1")[sure < threshold])
    policy = ConfidencePolicy(executor.model, classifier, threshold)
    windows, batch = words.windows("test"), settings["routing_batch_size"]
    everything = torch.arange(len(windows))
    routed = run_split(executor, windows, everything, batch_size=batch, policy=policy, name=arm)
    leaving = int((routed.exit == 0).sum())
    shallow = leaving / len(routed.exit)
    floor = random_nll(words.test, shallow) + _propagation(
        words, executor, leaving, batch, f"{arm}, at random"
    )
    model, layers = executor.model, executor.model.config.block_layers
    flops = executed_flops(model, routed.work, policy.flops_per_token)
    return values | {
        "threshold": threshold,
        "final_ppl": _ppl(routed.loss),
        "random_ppl": math.exp(floor),
        "attained": attained(words.test, sure, leaving),
        "accuracy": float((routed.argmax == words.test.column("target")).mean()),
        "shallow_ratio": shallow,
        "layer_saving": shallow * layers[1] / sum(layers),
        "executed_layer_saving": layer_saving(model, routed.work),
        "flop_saving": 1 - flops / full_depth_flops(model, routed.work.tokens, windows.window),
    }


def random_nll(test: States, share: float) -> float:
    """Expected loss in nats if ``share`` of the tokens leave at random, each as if no other had left."""
    shallow, deep = (test.column(f"loss_{exit}").mean(dtype=np.float64) for exit in (0, 1))
    return float(share * shallow + (1 - share) * deep)


def _propagation(words: SmallModel, executor: Executor, leaving: int, batch_size: int, name: str) -> float:
    """What tokens that left add to the loss of the others, in nats per token: of one executed draw of as many
    random exits, whose own losses are taken from the cache, so that the draw's luck drops out."""
    cached = np.stack([words.test.column(f"loss_{exit}") for exit in (0, 1)])
    drawn = exits_by_share(np.random.default_rng(words.seed).random((1, cached.shape[1])), [leaving])
    windows = words.windows("test")
    everything = torch.arange(len(windows))
    run = run_split(executor, windows, everything, batch_size=batch_size, exits=drawn, name=name)
    alone = np.take_along_axis(cached, drawn[None], axis=0)[0]
    return float((run.loss - alone).mean(dtype=np.float64))


def attained(test: States, sure: np.ndarray, leaving: int) -> float:
    """Share of the way from random exits to the divergence oracle that the confidence ``sure`` (N,) of all
    tokens goes where ``leaving`` of them leave, from losses as if no other had left."""
    shallow, deep = (test.column(f"loss_{exit}").astype(np.float64) for exit in (0, 1))

    def nll(score: np.ndarray) -> float:
        return float(np.where(most_confident(score, leaving), shallow, deep).mean())

    random = random_nll(test, leaving / len(shallow))
    return (random - nll(sure)) / (random - nll(-test.divergence(0)))


def _fit_arm(
    arm: str, calibration: States, seed: int, settings: Mapping[str, Any]
) -> tuple[ExitClassifier | None, float, Values]:
    """The arm's classifier, the threshold by which ``exit_ratio`` of held-out calibration tokens leave, and
    its values."""
    fitting = split_calibration(calibration.column("document"), seed) == 0
    values: Values = {}
    classifier = None
    if arm != "softmax":
        inputs, labels = calibration.hidden(0), torch.from_numpy(label(calibration, 0, arm, 0.0))
        parts = [(HeldInputs(inputs[rows]), labels[rows]) for rows in (fitting, ~fitting)]
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
        values = {
            "label_mean": float(labels.mean()),
            "exit_loss_first": fit.curve[0]["fit_loss"],
            "exit_loss_last": fit.curve[-1]["fit_loss"],
        }
    confidence = _confidence(calibration, classifier).numpy()[~fitting]
    return classifier, float(np.quantile(confidence, 1 - settings["exit_ratio"])), values


@torch.no_grad()
def _confidence(states: States, classifier: ExitClassifier | None) -> torch.Tensor:
    """(N,) of every token at the first exit: the classifier's, or with none the largest probability."""
    if classifier is None:
        return torch.from_numpy(states.column("max_prob_0").copy())
    return torch.sigmoid(classifier(states.hidden(0)))


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
