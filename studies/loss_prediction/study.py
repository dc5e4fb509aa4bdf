"""Seed 004, sections 1 and 2 and its comparison of methods: is per-token loss bimodal, and can a hidden state predict it?

python -m studies.loss_prediction.study --corpus sotu|wikitext [--protocol published|corrected|both]
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.mixture import GaussianMixture
from torch import nn

from offramp.artifacts.artifact import open_artifact
from offramp.corpus.windows import TokenWindows
from offramp.exits.ranking import most_confident
from studies.common import word_states as seed004
from studies.common.results import study_params
from studies.common.word_states import Kind, Measured, Predict, Protocol, Rows, Tokens, Values, Wanted

STUDY = "loss_prediction"

SETTINGS: dict[str, Any] = study_params(STUDY)
"""Section ``loss_prediction`` of pipeline/studies/params.yaml."""

NETWORKS: dict[str, list[int]] = {"linear": [], "mlp2": [128], "mlp3": [128, 128], "wide": [256]}
"""Hidden widths of the seed's predictors."""

FLAWS = [
    "J1 p(correct) is exp(-loss): as a score it is the oracle by identity",
    "J2 the linear classifier is stopped after 50 steps and meets another split; the MLPs train on tokens of the split they "
    "are tested on",
    "J3 gaps of easy sets of different sizes are compared with one oracle gap",
    "J4 two modes are read off a histogram whose bump lies above the uniform loss",
    "J5 everything is computed on the split that stopped training early; one model, one seed",
    "I1 the embedding is never trained",
    "I9 the vocabulary holds words that the training tokens never show",
]


def gaussian_d() -> float:
    """Cohen's d between the halves of a normal distribution split at its median: 2 sqrt(2/pi) / sqrt(1 - 2/pi) = 2.65.

    Each half is half-normal: mean sqrt(2/pi) and variance 1 - 2/pi.
    """
    return 2 * math.sqrt(2 / math.pi) / math.sqrt(1 - 2 / math.pi)


def cohens_d(one: np.ndarray, other: np.ndarray) -> float:
    """Difference of means over sqrt((s1^2 + s2^2) / 2), as seed 004 pools."""
    return float((one.mean() - other.mean()) / math.sqrt((one.var() + other.var()) / 2))


def loss_shape(loss: np.ndarray, vocab_size: int) -> Values:
    """The distribution of loss (N,) in nats, what an oracle split makes of it, and two tests of bimodality.

    ``dip_p``: Hartigan & Hartigan 1985, small = not unimodal; among 60,000 tokens any lump makes it small, so ``dip``,
    the distance to the nearest unimodal distribution, stands beside it. ``bic_gain``: positive = two Gaussians fit
    better than one, which any skewed distribution does too.
    """
    from diptest import diptest

    dip, dip_p = diptest(loss)
    easy = most_confident(-loss, len(loss) // 2)
    low, median, high = np.quantile(loss, (0.25, 0.5, 0.75))
    one, two = (
        GaussianMixture(count, random_state=0).fit(loss[:, None]).bic(loss[:, None]) for count in (1, 2)
    )
    return {
        "loss_mean": float(loss.mean()),
        "loss_std": float(loss.std()),
        "loss_min": float(loss.min()),
        "loss_max": float(loss.max()),
        "loss_q25": float(low),
        "loss_median": float(median),
        "loss_q75": float(high),
        "best_val_ppl": math.exp(loss.mean()),
        "oracle_easy": float(loss[easy].mean()),
        "oracle_hard": float(loss[~easy].mean()),
        "oracle_gap": float(loss[~easy].mean() - loss[easy].mean()),
        "oracle_d": cohens_d(loss[~easy], loss[easy]),
        "gaussian_d": gaussian_d(),
        "dip": float(dip),
        "dip_p": float(dip_p),
        "bic_gain": float(one - two),
        "worse_than_uniform": float((loss > math.log(vocab_size)).mean()),
    }


def unseen_shares(tokens: Tokens, seen: np.ndarray, above: float) -> Values:
    """Share of targets that are not among the ids ``seen``, of all tokens and of those with a loss over ``above`` nats."""
    unseen = ~np.isin(tokens.target, seen)
    worst = unseen[tokens.loss > above]
    return {
        "unseen_target_share": float(unseen.mean()),
        f"unseen_target_share_above{above:g}": float(worst.mean()) if len(worst) else None,
    }


def correct_prob_values(tokens: Tokens, thresholds: list[float]) -> Values:
    """p(correct token) as a score (flaw J1), split at its median and at fixed thresholds."""
    probability, loss = tokens.correct_prob, tokens.loss
    at_median = seed004.median_split(probability, loss)
    out: Values = {
        "r": seed004.correlation(probability, loss),
        "gap": at_median["gap"],
        "oracle_share": at_median["oracle_share"],
    }
    for threshold in thresholds:
        easy = probability >= threshold
        sides = seed004.split(easy, loss)
        out |= {
            f"t{threshold:g}.share": float(easy.mean()),
            f"t{threshold:g}.easy": sides["easy"],
            f"t{threshold:g}.hard": sides["hard"],
        }
    return seed004.prefixed("correct_prob", out)


def seed_linear(fitting: Tokens, options: Mapping[str, Any]) -> tuple[nn.Module, float]:
    """The seed's linear classifier: full-batch Adam on the summed squared error of the loss, stopped after a few steps.

    Returns it and its threshold, the quantile ``easy_share`` of the losses it predicts for ``fitting``.
    """
    network = seed004.relu_network(fitting.hidden.shape[1], [], options["seed"])
    seed004.train_network(
        network,
        (fitting.hidden, torch.from_numpy(fitting.loss).float()),
        lambda x, y: F.mse_loss(x, y, reduction="sum"),
        torch.optim.Adam(network.parameters(), lr=options["learning_rate"]),
        len(fitting),
        options["steps"],
        options["seed"],
    )
    return network, float(np.quantile(seed004.outputs(network, fitting.hidden), options["easy_share"]))


def regression_values(predicted: np.ndarray, loss: np.ndarray) -> Values:
    """Quality of a predicted loss (N,), and of the median split by it."""
    error = float(((predicted - loss) ** 2).mean())
    at_median = seed004.median_split(-predicted, loss)
    return {
        "mse": error,
        "r": seed004.correlation(predicted, loss),
        "r2": 1 - error / float(loss.var()),
        "gap": at_median["gap"],
        "oracle_share": at_median["oracle_share"],
    }


def f1_hard(hard: np.ndarray, called_hard: np.ndarray) -> float:
    """F1 with HARD as the positive class, the one that gives the seed's figures."""
    return float(2 * (hard & called_hard).sum() / (hard.sum() + called_hard.sum()))


def classification_values(
    log_odds: np.ndarray, loss: np.ndarray, easy_loss: float, median_gap: float
) -> Values:
    """A classifier of "loss <= ``easy_loss``" beside always answering HARD; losses of the sides are by its decision.

    ``share_of_median_gap`` divides by the oracle's gap at one half as the seed did (flaw J3).
    """
    hard, called_easy = loss > easy_loss, log_odds > 0
    sides = seed004.split(called_easy, loss)
    share = float(hard.mean())
    return {
        "accuracy": float((hard == ~called_easy).mean()),
        "f1": f1_hard(hard, ~called_easy),
        **sides,
        "easy_fraction": float(called_easy.mean()),
        "majority_accuracy": max(share, 1 - share),
        "majority_f1": f1_hard(hard, np.ones_like(hard)),
        "share_of_median_gap": None if sides["gap"] is None else sides["gap"] / median_gap,
    }


def measure(protocol: Protocol, settings: Mapping[str, Any]) -> Measured:
    """All figures of one protocol but the shares of unseen targets."""
    tokens, test = protocol.tokens, protocol.test
    values = loss_shape(tokens.loss, tokens.vocab_size) | correct_prob_values(
        tokens, settings["correct_prob"]
    )
    linear, threshold = seed_linear(protocol.reference, settings["linear"])
    predicted = seed004.outputs(linear, tokens.hidden)
    sides = seed004.split(predicted < threshold, tokens.loss)
    values |= seed004.prefixed("seed_linear", {"r": seed004.correlation(predicted, tokens.loss), **sides})
    scores = {"oracle": -test.loss, "seed linear": -seed004.outputs(linear, test.hidden)}
    bars = [
        ("oracle at one half", values["oracle_easy"], values["oracle_hard"]),
        ("seed linear", sides["easy"], sides["hard"]),
    ]
    for name, hidden in NETWORKS.items():
        predicted = protocol.predict(lambda some: some.loss, hidden, "value")
        values |= seed004.prefixed(f"regress.{name}", regression_values(predicted, test.loss))
        log_odds = protocol.predict(lambda some: some.loss <= settings["easy_loss"], hidden, "event")
        classified = classification_values(log_odds, test.loss, settings["easy_loss"], values["oracle_gap"])
        values |= seed004.prefixed(f"classify.{name}", classified)
        scores[f"regress {name}"] = -predicted
        bars.append((f"classify {name}", classified["easy"], classified["hard"]))
    figures = {
        "loss_histogram": loss_histogram(tokens.loss),
        "risk_coverage": seed004.risk_coverage(scores, test.loss, [i / 10 for i in range(1, 11)]),
        "easy_hard": seed004.bars(bars),
    }
    return values, figures


def loss_histogram(loss: np.ndarray, width: float = 0.5, highest: float = 25.0) -> Rows:
    """Share of tokens per half-nat bin, named by its centre; the last bin also holds what is above."""
    bins = round(highest / width)
    counts = np.bincount(np.minimum((loss / width).astype(np.int64), bins - 1), minlength=bins)
    return [{"loss": (i + 0.5) * width, "share": float(count / len(loss))} for i, count in enumerate(counts)]


def published_predict(tokens: Tokens, settings: Mapping[str, Any]) -> tuple[Predict, np.ndarray]:
    """The seed's regressors and classifiers, trained on a random part of ``tokens`` (flaw J2); and its test indices.

    Their script is lost: optimiser and stopping are ours, chosen so that they converge. Adam, raw states, MSE of the
    standardised value or binary cross-entropy.
    """
    options = settings["published"]
    fit, select, test = seed004.random_shares(
        len(tokens), options["fit_share"], options["select_share"], options["seed"]
    )

    def predict(wanted: Wanted, hidden: list[int], kind: Kind) -> np.ndarray:
        values = wanted(tokens).astype(np.float64)
        labels, centre, spread = torch.from_numpy(values).float(), 0.0, 1.0
        if kind == "value":
            labels, centre, spread = seed004.standardise(values, values[fit])
        network = seed004.relu_network(tokens.hidden.shape[1], hidden, options["seed"])
        seed004.train_network(
            network,
            (tokens.hidden[fit], labels[fit]),
            F.mse_loss if kind == "value" else F.binary_cross_entropy_with_logits,
            torch.optim.Adam(network.parameters(), lr=options["learning_rate"]),
            options["batch_size"],
            options["max_epochs"],
            options["seed"],
            (tokens.hidden[select], labels[select]),
            options["patience"],
        )
        return centre + spread * seed004.outputs(network, tokens.hidden[test])

    return predict, test


def published(folder: Path, settings: Mapping[str, Any] = SETTINGS) -> Measured:
    """The seed's procedure on validation tokens; its linear classifier is fitted on training tokens."""
    tokens, train = seed004.read_tokens(folder / "states"), seed004.read_tokens(folder / "train_states")
    predict, test = published_predict(tokens, settings)
    values, figures = measure(Protocol(tokens, tokens.select(test), train, predict), settings)
    return values | unseen_shares(tokens, train.target, settings["unseen_loss"]), figures


def corrected(folder: Path, seed: int, settings: Mapping[str, Any] = SETTINGS) -> Measured:
    """Fitted on calibration documents, reported on test documents. ``seed_linear`` keeps the seed's 50 steps, to
    stand beside the same network fitted until it converges (``regress.linear``)."""
    calibration, test = (
        seed004.read_tokens(folder / "states" / name, settings["tokens_per_split"])
        for name in ("calibration", "test")
    )
    predict = seed004.converged_predict(calibration, test, seed, settings)
    values, figures = measure(Protocol(test, test, calibration, predict), settings)
    train = TokenWindows(open_artifact(folder.parent / "data", "data"), "train")
    seen = train.batch(range(len(train)))[1].unique().numpy()
    return values | unseen_shares(test, seen, settings["unseen_loss"]), figures


def run(
    corpus: str, protocol: str, root: Path, text: dict[str, str], settings: Mapping[str, Any] = SETTINGS
) -> Path:
    """Write metrics/studies/loss_prediction.<corpus>.json under ``root``."""
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
