"""Scores that need no target: how well do they rank tokens by loss, and can a hidden state predict them?
Report loss-prediction.

Published: the report's procedure with its flaws (study.yaml), all on validation words. Corrected: word-level
models without them, directions of scores and predictors from calibration documents, everything reported on
test documents.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from offramp.states.store import States
from studies.common.first_block import first_block
from studies.common.loss_predictors import (
    Kind,
    Measured,
    Predictor,
    Wanted,
    converged_predictor,
    outputs,
    random_shares,
    relu_network,
    standardise,
    train_network,
)
from studies.common.study import Job, Outcome
from studies.common.tables import Table, Values, mean_tables, of_protocol
from studies.common.token_scores import (
    SCORES,
    Tokens,
    bars,
    correlation,
    median_split,
    prefixed,
    read_tokens,
    risk_coverage,
    split,
)
from studies.common.word_models import word_models

ARMS = SCORES


def published(job: Job) -> Outcome:
    """The report's procedure, all on validation words."""
    block = first_block(job.text, job.cache, job.shared["first_block"], job.seeds[0])
    values, tables = published_values(block.states, job.settings, job.arms)
    return Outcome([values], of_protocol(tables, "published"))


def corrected(job: Job) -> Outcome:
    """Directions and predictors from calibration documents, reported on test documents."""
    models = word_models(job.text, job.cache, job.shared["word_models"], job.seeds)
    measured = [
        corrected_values(model.calibration, model.test, model.seed, job.settings, job.arms)
        for model in models
    ]
    tables = mean_tables([tables for _, tables in measured])
    return Outcome([values for values, _ in measured], of_protocol(tables, "corrected"))


def published_values(
    states: States, settings: Mapping[str, Any], arms: Sequence[str]
) -> tuple[Values, dict[str, Table]]:
    """Values and tables of the published protocol, from states of validation words."""
    tokens = read_tokens(states)
    predict, test = published_predictor(tokens, settings["published"])
    return measure(Measured(tokens, tokens.select(test), tokens, predict), settings, arms)


def corrected_values(
    calibration: States, test: States, seed: int, settings: Mapping[str, Any], arms: Sequence[str]
) -> tuple[Values, dict[str, Table]]:
    """Values and tables of one random seed."""
    limit = settings["tokens_per_split"]
    fitting, tested = read_tokens(calibration, limit), read_tokens(test, limit)
    predict = converged_predictor(fitting, tested, seed, settings["corrected"])
    return measure(Measured(tested, tested, fitting, predict), settings, arms)


def score_values(name: str, tokens: Tokens, reference: Tokens) -> Values:
    """How score ``name`` relates to loss, and the split at its median; its direction is the sign of its
    correlation with loss among ``reference`` tokens."""
    score, loss = tokens.scores[name], tokens.loss
    direction = -1 if (correlation(reference.scores[name], reference.loss) or 0) > 0 else 1
    return prefixed(
        name,
        {
            "r": correlation(score, loss),
            "mean": float(score.mean()),
            "std": float(score.std()),
            **median_split(direction * score, loss),
        },
    )


def subset_values(tokens: Tokens, thresholds: Sequence[float], arms: Sequence[str]) -> Values:
    """Correlation of every score with loss among tokens of max_prob >= t; None where too few tokens
    remain."""
    out: Values = {}
    for threshold in thresholds:
        inside = tokens.scores["max_prob"] >= threshold
        row = {"n": int(inside.sum()), "share": float(inside.mean())}
        row |= {name: correlation(tokens.scores[name][inside], tokens.loss[inside]) for name in arms}
        out |= prefixed(f"subset.{threshold:g}", row)
    return out


def measure(
    measured: Measured, settings: Mapping[str, Any], arms: Sequence[str]
) -> tuple[Values, dict[str, Table]]:
    """All values and tables of one protocol."""
    tokens, test, confident = measured.tokens, measured.test, settings["confident"]
    values: Values = {}
    for name in arms:
        values |= score_values(name, tokens, measured.reference)
        began = time.perf_counter()
        predicted = measured.predict(lambda some, name=name: some.scores[name], settings["hidden"], "value")
        values[f"predict.{name}.seconds"] = time.perf_counter() - began
        values[f"predict.{name}.r"] = correlation(predicted, test.scores[name])
    values |= subset_values(tokens, settings["subsets"], arms)
    sides = split(tokens.scores["max_prob"] >= confident, tokens.loss)
    values |= {f"subset.{confident:g}.loss": sides["easy"], f"rest.{confident:g}.loss": sides["hard"]}
    scores = {name: score for name, score in tokens.scores.items() if name in arms}
    tables = {
        "risk_coverage": risk_coverage({"oracle": -tokens.loss, **scores}, tokens.loss),
        "easy_hard": bars([(name, values[f"{name}.easy"], values[f"{name}.hard"]) for name in arms]),
    }
    return values, tables


def published_predictor(tokens: Tokens, settings: Mapping[str, Any]) -> tuple[Predictor, np.ndarray]:
    """The report's predictors of a score, trained on a random share of ``tokens``; and the indices of the
    others, its test tokens.

    A ReLU network with He's initialisation, plain SGD, a fixed number of epochs on the z-scored value.
    ``settings``: fit_share, seed, learning_rate, batch_size, epochs.
    """
    seed = settings["seed"]
    fit, _, test = random_shares(len(tokens), settings["fit_share"], 0.0, seed)

    def predict(wanted: Wanted, hidden: Sequence[int], kind: Kind) -> np.ndarray:
        values = wanted(tokens)
        labels, centre, spread = standardise(values, values[fit])
        network = relu_network(tokens.hidden.shape[1], hidden, seed, he=True)
        train_network(
            network,
            (tokens.hidden[fit], labels[fit]),
            F.mse_loss,
            torch.optim.SGD(network.parameters(), lr=settings["learning_rate"]),
            batch_size=settings["batch_size"],
            epochs=settings["epochs"],
            seed=seed,
        )
        return centre + spread * outputs(network, tokens.hidden[test])

    return predict, test
