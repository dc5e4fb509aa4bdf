"""Seed 004: scores that need no target - how well do they rank tokens by loss, and can a hidden state predict them?

python -m studies.inference_confidence.study --corpus sotu|wikitext [--protocol published|corrected|both]
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from studies.common import word_states as seed004
from studies.common.results import study_params
from studies.common.word_states import SCORES, Kind, Measured, Predict, Protocol, Tokens, Values, Wanted

STUDY = "inference_confidence"

SETTINGS: dict[str, Any] = study_params(STUDY)
"""Section ``inference_confidence`` of pipeline/studies/params.yaml."""

FLAWS = [
    "J2 predictors are trained on a random part of the tokens they are tested among",
    "J5 everything is computed on the split that stopped training early, also the direction of each score; one model, one "
    "seed",
    "I1 the embedding is never trained",
    "I9 the vocabulary holds words that the training tokens never show",
]


def score_values(name: str, tokens: Tokens, reference: Tokens) -> Values:
    """How score ``name`` relates to loss, and the split at its median; its direction is the sign of its correlation
    with loss among ``reference`` tokens."""
    score, loss = tokens.scores[name], tokens.loss
    direction = -1 if (seed004.correlation(reference.scores[name], reference.loss) or 0) > 0 else 1
    return seed004.prefixed(
        name,
        {
            "r": seed004.correlation(score, loss),
            "mean": float(score.mean()),
            "std": float(score.std()),
            **seed004.median_split(direction * score, loss),
        },
    )


def subset_values(tokens: Tokens, thresholds: list[float]) -> Values:
    """Correlation of every score with loss among tokens of max_prob >= t; None where too few tokens remain."""
    out: Values = {}
    for threshold in thresholds:
        inside = tokens.scores["max_prob"] >= threshold
        row = {"n": int(inside.sum()), "share": float(inside.mean())}
        row |= {
            name: seed004.correlation(tokens.scores[name][inside], tokens.loss[inside]) for name in SCORES
        }
        out |= seed004.prefixed(f"subset.{threshold:g}", row)
    return out


def measure(protocol: Protocol, settings: Mapping[str, Any]) -> Measured:
    """All figures of one protocol."""
    tokens, test, confident = protocol.tokens, protocol.test, settings["confident"]
    values: Values = {}
    for name in SCORES:
        values |= score_values(name, tokens, protocol.reference)
        predicted = protocol.predict(lambda some, name=name: some.scores[name], settings["hidden"], "value")
        values[f"predict.{name}.r"] = seed004.correlation(predicted, test.scores[name])
    values |= subset_values(tokens, settings["subsets"])
    sides = seed004.split(tokens.scores["max_prob"] >= confident, tokens.loss)
    values |= {f"subset.{confident:g}.loss": sides["easy"], f"rest.{confident:g}.loss": sides["hard"]}
    figures = {
        "risk_coverage": seed004.risk_coverage(
            {"oracle": -tokens.loss, **tokens.scores}, tokens.loss, [i / 10 for i in range(1, 11)]
        ),
        "easy_hard": seed004.bars(
            [(name, values[f"{name}.easy"], values[f"{name}.hard"]) for name in SCORES]
        ),
    }
    return values, figures


def published_predict(tokens: Tokens, settings: Mapping[str, Any]) -> tuple[Predict, np.ndarray]:
    """The seed's predictors of a score: ReLU network with He's initialisation, plain SGD, a fixed number of epochs on
    the z-scored value of a random share of the tokens. Also returns the indices of the others, its test tokens."""
    options = settings["published"]
    fit, _, test = seed004.random_shares(len(tokens), options["fit_share"], 0.0, options["seed"])

    def predict(wanted: Wanted, hidden: list[int], kind: Kind) -> np.ndarray:
        values = wanted(tokens)
        labels, centre, spread = seed004.standardise(values, values[fit])
        network = seed004.relu_network(tokens.hidden.shape[1], hidden, options["seed"], he=True)
        seed004.train_network(
            network,
            (tokens.hidden[fit], labels[fit]),
            F.mse_loss,
            torch.optim.SGD(network.parameters(), lr=options["learning_rate"]),
            options["batch_size"],
            options["epochs"],
            options["seed"],
        )
        return centre + spread * seed004.outputs(network, tokens.hidden[test])

    return predict, test


def published(folder: Path, settings: Mapping[str, Any] = SETTINGS) -> Measured:
    """The seed's procedure, all on validation tokens."""
    tokens = seed004.read_tokens(folder / "states")
    predict, test = published_predict(tokens, settings)
    return measure(Protocol(tokens, tokens.select(test), tokens, predict), settings)


def corrected(folder: Path, seed: int, settings: Mapping[str, Any] = SETTINGS) -> Measured:
    """Directions and predictors from calibration documents, reported on test documents."""
    calibration, test = (
        seed004.read_tokens(folder / "states" / name, settings["tokens_per_split"])
        for name in ("calibration", "test")
    )
    predict = seed004.converged_predict(calibration, test, seed, settings)
    return measure(Protocol(test, test, calibration, predict), settings)


def run(
    corpus: str, protocol: str, root: Path, text: dict[str, str], settings: Mapping[str, Any] = SETTINGS
) -> Path:
    """Write metrics/studies/inference_confidence.<corpus>.json under ``root``."""
    return seed004.run_study(
        STUDY,
        FLAWS,
        settings,
        lambda folder: published(folder, settings),
        lambda folder, seed: corrected(folder, seed, settings),
        corpus,
        protocol,
        root,
        text,
    )


if __name__ == "__main__":
    seed004.study_main(run, STUDY)
