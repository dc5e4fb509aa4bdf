"""Train and calibrate everything that may decide an exit, from cached calibration-split states alone.

The calibration split's documents are halved: one half fits classifiers, the other stops them early and
calibrates every signal. The ``exits`` artifact holds ``exits.safetensors`` (classifiers and calibrators),
``config.json`` and ``confidences.parquet`` (calibrated confidences of the second half, for quantile thresholds).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file
from scipy.stats import rankdata, spearmanr
from torch import Tensor

from offramp.errors import UserError
from offramp.exits.calibration import fit_calibrator
from offramp.exits.classifier import ExitClassifier, classifier_inputs, fit_classifier
from offramp.exits.labels import KINDS, agreement, label
from offramp.exits.ranking import loss_gap, most_confident
from offramp.exits.signals import LEARNED, SIGNALS, raw_signal
from offramp.lineage.artifact import Artifact, create_artifact, open_artifact
from offramp.states.statistics import STATISTICS
from offramp.states.store import States


def split_calibration(documents: np.ndarray, seed: int) -> np.ndarray:
    """Mask of the tokens that fit classifiers: half of the documents, drawn by ``seed``."""
    names = np.unique(documents)
    if len(names) < 2:
        raise UserError(
            "train_exits: the calibration split has a single document, but one half must fit and another select; "
            "raise corpus.calibration_fraction or cut texts with corpus.document_characters"
        )
    chosen = np.random.default_rng(seed).permutation(names)[: len(names) // 2]
    return np.isin(documents, chosen)


def train_exits(states: States, settings: Any, path: Path, params: dict[str, Any]) -> tuple[Artifact, dict, list]:
    """Write the ``exits`` artifact; returns it with the rows of metrics/exits.json and exit_fit.csv.

    ``settings`` is the ``exits`` section of the parameters.
    """
    fitting = split_calibration(states.column("document"), settings.seed)
    metrics, curve, tensors, confidences = {}, [], {}, {}
    joint = _joint_classifiers(states) if settings.mode == "joint" else None
    for exit in range(states.num_exits - 1):
        agrees = agreement(states, exit)
        raw = {name: raw_signal(name, _statistics_of(states, exit)) for name in SIGNALS}
        if joint:
            classifier, fit_metrics = joint[exit], {"label": "joint"}
            inputs = states.hidden(exit)
        else:
            classifier, inputs, fit_metrics, rows = _fit(states, exit, fitting, settings)
            curve += [{"exit": exit, **row} for row in rows]
        with torch.no_grad():
            raw[LEARNED] = torch.cat([classifier(part) for part in inputs.split(65536)]).numpy()
        tensors |= {f"classifier_{exit}.{name}": value for name, value in classifier.state_dict().items()}
        signals = {}
        for name, values in raw.items():
            calibrator = fit_calibrator(values[~fitting], agrees[~fitting])
            tensors |= {f"knots_{exit}.{name}": calibrator.knots, f"values_{exit}.{name}": calibrator.values}
            confidence = calibrator(torch.from_numpy(values)).numpy()
            confidences[f"{name}_{exit}"] = confidence[~fitting]
            signals[name] = signal_quality(confidence[~fitting], agrees[~fitting], states.column(f"loss_{exit}")[~fitting])
        share = float(agrees[~fitting].mean())
        metrics[f"exit_{exit}"] = {"fit": fit_metrics, "signals": signals, "agreement": share,
                                   "majority_baseline": max(share, 1 - share)}
    config = {
        "exits": states.num_exits, "inputs": "state" if joint else settings.inputs,
        "hidden": [] if joint else list(settings.hidden), "width": states.artifact.meta["width"],
        "signals": [*SIGNALS, LEARNED], "label": "joint" if joint else settings.label,
    }
    with create_artifact(path, "exits", params, {"states/calibration": states.artifact}) as out:
        save_file({name: value.contiguous() for name, value in tensors.items()}, out.path / "exits.safetensors")
        (out.path / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
        pq.write_table(pa.table(confidences), out.path / "confidences.parquet", compression="NONE")
        out.meta.update(config, lm=states.artifact.inputs["lm"])
    return open_artifact(path, "exits", verify=False), metrics, curve


def _fit(states: States, exit: int, fitting: np.ndarray, settings: Any) -> tuple[ExitClassifier, Tensor, dict, list]:
    hidden = states.hidden(exit) if settings.inputs != "statistics" else None
    statistics = torch.from_numpy(states.statistics(exit)) if settings.inputs != "state" else None
    inputs = classifier_inputs(settings.inputs, hidden, statistics)
    labels, mask = torch.from_numpy(label(states, exit, settings.label)), torch.from_numpy(fitting)
    fit = fit_classifier(
        (inputs[mask], labels[mask]), (inputs[~mask], labels[~mask]), settings.label, list(settings.hidden),
        settings.learning_rate, settings.batch_size, settings.max_epochs, settings.patience, settings.seed,
        name=f"exit classifier {exit}",
    )
    with torch.no_grad():
        score = fit.classifier(inputs[~mask]).numpy()
    wanted = labels[~mask].numpy() * (-1 if KINDS[settings.label] == "cost" else 1)
    metrics = {
        "label": settings.label, "epochs": len(fit.curve), "best_epoch": fit.best_epoch, "converged": fit.converged,
        "select_loss": min(row["select_loss"] for row in fit.curve),
        "pearson_label": float(np.corrcoef(score, wanted)[0, 1]),
        "spearman_label": float(spearmanr(score, wanted).statistic),
        "fit_tokens": int(fitting.sum()), "select_tokens": int((~fitting).sum()),
    }
    return fit.classifier, inputs, metrics, fit.curve


def _statistics_of(states: States, exit: int) -> dict[str, np.ndarray]:
    return {name: states.column(f"{name}_{exit}") for name in STATISTICS}


def _joint_classifiers(states: States) -> list[ExitClassifier]:
    """The linear classifiers that pretraining learned together with the blocks."""
    weights = load_file(states.artifact.file("readout.safetensors"))
    found = []
    for exit in range(states.num_exits - 1):
        name = f"exit_classifiers.{exit}"
        if f"{name}.weight" not in weights:
            raise UserError("exits.mode joint: the model has no jointly trained classifiers; set pretrain.joint_classifier")
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        classifier = ExitClassifier(weight.shape[1], [])
        classifier.layers[0].load_state_dict({"weight": weight, "bias": bias})
        found.append(classifier.eval())
    return found


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """P(a positive token scores above a negative one), ties counting half (Mann-Whitney)."""
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if not positives or not negatives:
        return float("nan")
    ranks = rankdata(score)
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def signal_quality(confidence: np.ndarray, agrees: np.ndarray, loss: np.ndarray) -> dict[str, float | None]:
    """How a signal ranks held-out tokens: the rows of metrics/exits.json (easy = upper half).

    Whether its probabilities fit is for the test split to say (``ece``, reliability): these tokens calibrated it.
    """
    easy = most_confident(confidence, len(confidence) // 2)
    oracle = most_confident(-loss, len(confidence) // 2)
    ranking = auroc(confidence, agrees)
    gap = loss_gap(easy, loss)
    return {
        "auroc": None if np.isnan(ranking) else ranking,
        "loss_gap": gap, "oracle_share": gap / loss_gap(oracle, loss),
        "spearman_loss": float(spearmanr(-confidence, loss).statistic),
    }
