"""Train and calibrate everything that may decide an exit, from cached calibration-split states alone.

The calibration split's documents are parted in three: ``fit`` (half of them) teaches classifiers, ``select``
stops them early, calibrates every signal and predicted benefit and is what thresholds are searched on,
``guarantee`` is touched by none of that and tests the thresholds of risk control. The ``exits`` artifact
holds ``exits.safetensors`` (classifiers and calibrators), ``config.json`` and ``held_out.parquet``
(calibrated confidences, losses and predictions of the last two parts).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from scipy.stats import spearmanr
from torch import Tensor

from offramp.artifacts.artifact import Artifact, create_artifact, open_artifact
from offramp.errors import UserError, writing
from offramp.exits.calibration import fit_calibrator, gain_slope
from offramp.exits.classifier import ExitClassifier
from offramp.exits.labels import KINDS, agreement, label
from offramp.exits.ranking import aurc, auroc, classification_quality, loss_gap, most_confident
from offramp.exits.signals import known_signals, raw_signal
from offramp.exits.store import HELD_OUT
from offramp.machine.watch import NOBODY, Part, Watch
from offramp.params import Exits as ExitParams
from offramp.results.exits import (
    Classification,
    ClassifierFit,
    FitEpoch,
    FittedExit,
    FittedExits,
    GainSlope,
    SignalQuality,
)
from offramp.results.shape import exit_key
from offramp.states.store import States
from offramp.training.exit_classifiers import fit_classifier, outputs_of
from offramp.training.inputs import StoredInputs, state_inputs
from offramp.training.loop import Row
from offramp.vocabulary import BENEFITS, LEARNED

PARTS = ("fit", "select", "guarantee")
DRAWS = 2000
"""Resamples of documents behind the interval of a slope."""


def split_calibration(documents: np.ndarray, seed: int) -> np.ndarray:
    """The part of every token, as an index into PARTS.

    One part is half of the documents, drawn by ``seed``, the others are a quarter each. With two documents
    the last part is empty, and so are its promises. Raises UserError for a single document.
    """
    names = np.unique(documents)
    if len(names) < 2:
        raise UserError(
            "train_exits: the calibration split has a single document, but one half must fit and another "
            "select; raise corpus.calibration_fraction or cut texts with corpus.document_characters"
        )
    order = np.random.default_rng(seed).permutation(len(names))
    part_of = np.zeros(len(names), np.int8)
    held_out = order[len(names) // 2 :]
    part_of[held_out] = PARTS.index("select")
    part_of[held_out[(len(held_out) + 1) // 2 :]] = PARTS.index("guarantee")
    return part_of[np.searchsorted(names, documents)]


def train_exits(
    states: States, settings: ExitParams, path: Path, params: dict[str, Any], watch: Watch = NOBODY
) -> tuple[Artifact, FittedExits, list[FitEpoch]]:
    """Write the ``exits`` artifact; returns it with the measures of the fit and its epochs.

    ``params`` are the stage's parameters as the manifest keeps them. UserError where too little text is there
    to part, and where classifiers of joint training are asked for that the model does not have.
    """
    part = split_calibration(states.column("document"), settings.seed)
    held_out = part > 0
    fitted: dict[str, FittedExit] = {}
    curve: list[FitEpoch] = []
    tensors: dict[str, Tensor] = {}
    confidences: dict[str, np.ndarray] = {}
    joint = _joint_classifiers(states) if settings.mode == "joint" else None
    for exit in range(states.num_exits - 1):
        if joint:
            learned = LearnedExit(joint[exit], "state", ClassifierFit(label="joint"), [])
        else:
            learned = _fit(states, exit, part, settings, Part(watch, exit_key(exit), exit=exit))
        fitted[exit_key(exit)] = _calibrate(states, exit, part, learned, settings, tensors, confidences)
        curve += [FitEpoch(exit=exit, **row) for row in learned.curve]
    for exit in range(states.num_exits):
        confidences |= {
            f"{name}_{exit}": states.column(f"{name}_{exit}")[held_out] for name in ("loss", "argmax")
        }
    config = {
        "exits": states.num_exits,
        "inputs": "state" if joint else settings.inputs,
        "hidden": [] if joint else list(settings.hidden),
        "width": states.artifact.meta["width"],
        "signals": [*known_signals(states.num_exits), LEARNED],
        "label": "joint" if joint else settings.label,
    }
    slopes = [[slope.to_json() for slope in (of.gain_slopes or {}).values()] for of in fitted.values()]
    if any(slopes):
        config["gain_slopes"] = slopes
    known = {name: states.column(name)[held_out] for name in ("document", "sequence", "position", "target")}
    with create_artifact(path, "exits", params, {"states/calibration": states.artifact}) as out:
        with writing(out.path / "exits.safetensors", sum(value.nbytes for value in tensors.values())):
            save_file(
                {name: value.contiguous() for name, value in tensors.items()}, out.path / "exits.safetensors"
            )
        (out.path / "config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
        table = {
            "part": pa.array(PARTS).take(pa.array(part[held_out])).dictionary_encode(),
            **known,
            **confidences,
        }
        pq.write_table(pa.table(table), out.path / HELD_OUT, compression="NONE")
        out.meta.update(config, lm=states.artifact.inputs["lm"], precision=states.precision)
    return open_artifact(path, "exits", verify=False), FittedExits(**fitted), curve


class LearnedExit(NamedTuple):
    """The classifier of one exit, however it was trained."""

    classifier: ExitClassifier
    inputs: str
    """What it sees: ``state``, ``statistics`` or ``both``."""
    fit: ClassifierFit
    """How the fit went."""
    curve: list[Row]


def _calibrate(
    states: States,
    exit: int,
    part: np.ndarray,
    learned: LearnedExit,
    settings: ExitParams,
    tensors: dict[str, Tensor],
    confidences: dict[str, np.ndarray],
) -> FittedExit:
    """Calibrate every signal of an exit on the part ``select``; returns what it and the classifier are worth.

    Adds the classifier's weights and the calibrators' knots to ``tensors``, and the calibrated confidences of
    the held-out parts to ``confidences``.
    """
    select, held_out = part == PARTS.index("select"), part > 0
    agrees, columns, loss = agreement(states, exit), states.label_free(exit), states.column(f"loss_{exit}")
    everything = StoredInputs(states, exit, learned.inputs, np.ones(states.num_tokens, bool))
    outputs = outputs_of(learned.classifier, everything)
    tensors |= {f"classifier_{exit}.{name}": value for name, value in learned.classifier.state_dict().items()}
    quality = {}
    for name in (*known_signals(states.num_exits), LEARNED):
        values = outputs[:, -1].numpy() if name == LEARNED else raw_signal(name, columns)
        _require_numbers(name, values, exit)
        calibrator = fit_calibrator(values[select], agrees[select], settings.calibration)
        tensors |= {f"knots_{exit}.{name}": calibrator.knots, f"values_{exit}.{name}": calibrator.values}
        confidence = calibrator(torch.from_numpy(np.ascontiguousarray(values[held_out]))).numpy()
        confidences[f"{name}_{exit}"] = confidence
        quality[name] = signal_quality(confidence[select[held_out]], agrees[select], loss[select])
    share = float(agrees[select].mean())
    fitted = FittedExit(
        fit=learned.fit,
        signals=quality,
        agreement=share,
        majority_baseline=max(share, 1 - share),
    )
    if learned.fit.label in BENEFITS:
        predicted = learned.classifier.as_costs(outputs).numpy()
        slopes = _gain_slopes(states, exit, select, predicted, settings)
        return fitted.model_copy(update={"gain_slopes": slopes})
    return fitted


def _require_numbers(name: str, values: np.ndarray, exit: int) -> None:
    """UserError where a signal (N,) of an exit is not finite at some token."""
    if bad := int((~np.isfinite(values)).sum()):
        raise UserError(
            f"train_exits: signal {name} of exit {exit} is not a finite number at {bad} of {len(values)} "
            "tokens; lower "
            + (
                "exits.learning_rate"
                if name == LEARNED
                else "pretrain.learning_rate: the model's readouts overflow"
            )
        )


def _require_two_classes(labels: dict[str, Tensor], settings: ExitParams, exit: int) -> None:
    """UserError where a label that is yes or no is the same for all tokens of a part, (N, 1) by its name."""
    for part, values in labels.items():
        if values.min() < values.max():
            continue
        remedy = "choose another exits.label"
        if settings.label == "easy":
            higher = "lower" if values.max() else "higher"
            remedy = f"give a {higher} exits.easy_loss (now {settings.easy_loss} nats)"
        raise UserError(
            f"train_exits: label {settings.label} of exit {exit} is {'yes' if values.max() else 'no'} for "
            f"all {len(values)} tokens of part {part}, so there is nothing to tell apart; {remedy}"
        )


def _gain_slopes(
    states: States, exit: int, select: np.ndarray, predicted: np.ndarray, settings: ExitParams
) -> dict[str, GainSlope]:
    """Per later exit, what predicted benefits (N, L) of the tokens in ``select`` (N,) are worth in gain."""
    gains, documents = label(states, exit, "gain", settings.easy_loss), states.column("document")[select]
    slopes = {}
    for place, deeper in enumerate(range(exit + 1, states.num_exits)):
        slope, bounds = gain_slope(
            predicted[select, place], gains[select, place], documents, DRAWS, settings.seed
        )
        slopes[exit_key(deeper)] = GainSlope(
            slope=slope, interval=bounds, tokens=len(documents), documents=len(np.unique(documents))
        )
    return slopes


def _fit(states: States, exit: int, part: np.ndarray, settings: ExitParams, watch: Watch) -> LearnedExit:
    """Fit the classifier of an exit on the part ``fit``, stopped early on the part ``select``."""
    labels = torch.from_numpy(label(states, exit, settings.label, settings.easy_loss))
    rows = {name: part == PARTS.index(name) for name in ("fit", "select")}
    wanted = {name: labels[torch.from_numpy(chosen)] for name, chosen in rows.items()}
    if KINDS[settings.label] == "binary":
        _require_two_classes(wanted, settings, exit)
    inputs = {name: state_inputs(states, exit, settings.inputs, chosen) for name, chosen in rows.items()}
    fitted = fit_classifier(
        (inputs["fit"], wanted["fit"]),
        (inputs["select"], wanted["select"]),
        settings.label,
        list(settings.hidden),
        learning_rate=settings.learning_rate,
        batch_size=settings.batch_size,
        max_epochs=settings.max_epochs,
        patience=settings.patience,
        seed=settings.seed,
        name=f"exit classifier {exit}",
        watch=watch,
    )
    score, fit_score = (
        outputs_of(fitted.classifier, inputs[name])[:, -1].numpy() for name in ("select", "fit")
    )
    right = wanted["select"][:, -1].numpy() * (-1 if KINDS[settings.label] == "cost" else 1)
    ranks = bool(np.ptp(score) and np.ptp(right))  # what is all alike has no correlation
    tokens_of = {name: int((part == place).sum()) for place, name in enumerate(PARTS)}
    quality = ClassifierFit(
        label=settings.label,
        epochs=len(fitted.curve),
        best_epoch=fitted.best_epoch,
        converged=fitted.converged,
        select_loss=min(row["select_loss"] for row in fitted.curve),
        pearson_label=float(np.corrcoef(score, right)[0, 1]) if ranks else None,
        spearman_label=float(spearmanr(score, right).statistic) if ranks else None,
        fit_tokens=tokens_of["fit"],
        select_tokens=tokens_of["select"],
        guarantee_tokens=tokens_of["guarantee"],
    )
    if KINDS[settings.label] == "binary":
        positive = wanted["select"][:, -1].numpy() > 0.5
        cut = np.quantile(
            fit_score, 1 - wanted["fit"][:, -1].mean().item()
        )  # as many are called positive as are
        decisions = Classification(**classification_quality(score > cut, positive))
        quality = quality.model_copy(update={"classification": decisions})
    return LearnedExit(fitted.classifier, settings.inputs, quality, fitted.curve)


def _joint_classifiers(states: States) -> list[ExitClassifier]:
    """The linear classifiers that pretraining learned together with the blocks."""
    weights = states.readouts()
    classifiers = []
    for exit in range(states.num_exits - 1):
        name = f"exit_classifiers.{exit}"
        if f"{name}.weight" not in weights:
            raise UserError(
                "exits.mode joint: the model has no jointly trained classifiers; "
                "set pretrain.joint_classifier"
            )
        weight, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
        classifier = ExitClassifier(weight.shape[1], [])
        classifier.layers[0].load_state_dict({"weight": weight, "bias": bias})
        classifiers.append(classifier.eval())
    return classifiers


def signal_quality(confidence: np.ndarray, agrees: np.ndarray, loss: np.ndarray) -> SignalQuality:
    """How a signal ranks held-out tokens (easy = upper half).

    ``auroc`` and ``aurc`` are of "leaving here is right", that is, agrees with full depth. Whether its
    probabilities fit is for the test split to say (``ece``, reliability): these tokens calibrated it.
    """
    easy = most_confident(confidence, len(confidence) // 2)
    oracle = most_confident(-loss, len(confidence) // 2)
    ranking = auroc(confidence, agrees)
    gap, widest = loss_gap(easy, loss), loss_gap(oracle, loss)
    if not widest > 0:
        raise UserError(
            f"train_exits: the losses of all {len(loss)} tokens that select a signal are {loss[0]}, so none "
            "is easier than another; train the model longer, or give more calibration text"
        )
    return SignalQuality(
        auroc=None if np.isnan(ranking) else ranking,
        aurc=aurc(confidence, ~agrees),
        loss_gap=gap,
        oracle_share=gap / widest,
        spearman_loss=float(spearmanr(-confidence, loss).statistic) if np.ptp(confidence) else None,
    )
