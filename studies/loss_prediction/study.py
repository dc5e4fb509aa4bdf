"""Is the loss of a token bimodal, and can it be predicted from the hidden state? Report loss-prediction,
sections 1 and 2.

Published: the report's procedure with its flaws (study.yaml): one model whose embedding was never trained,
everything computed on the split that stopped its training early, predictors trained on a random part of that
split's tokens. Corrected: word-level models without those flaws, predictors fitted until they converge on
calibration documents, everything reported on test documents. Shapes: N tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from diptest import diptest
from sklearn.mixture import GaussianMixture
from torch import nn

from offramp.exits.ranking import most_confident
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

ARMS: dict[str, list[int]] = {"linear": [], "mlp2": [128], "mlp3": [128, 128], "wide": [256]}
"""Hidden widths of the report's predictors."""


def published(job: Job) -> Outcome:
    """The report's procedure on validation words; its linear classifier is fitted on training words."""
    block = first_block(job.text, job.cache, job.shared["first_block"], job.seeds[0])
    values, tables = published_values(block.states, block.train_states, job.settings, job.arms)
    return Outcome([values], of_protocol(tables, "published"))


def corrected(job: Job) -> Outcome:
    """Fitted on calibration documents, reported on test documents.

    ``report_linear`` keeps the report's 50 steps, to stand beside the same network fitted until it converges
    (``regress.linear``).
    """
    rows, by_seed = [], []
    for model in word_models(job.text, job.cache, job.shared["word_models"], job.seeds):
        windows = model.windows("train")
        seen = windows.batch(range(len(windows)))[1].unique().numpy()
        values, tables = corrected_values(
            model.calibration, model.test, seen, model.seed, job.settings, job.arms
        )
        rows.append(values)
        by_seed.append(tables)
    return Outcome(rows, of_protocol(mean_tables(by_seed), "corrected"))


def published_values(
    states: States, train_states: States, settings: Mapping[str, Any], arms: Sequence[str]
) -> tuple[Values, dict[str, Table]]:
    """Values and tables of the published protocol, from states of validation and of training words."""
    tokens, train = read_tokens(states), read_tokens(train_states)
    predict, test = published_predictor(tokens, settings["published"])
    values, tables = measure(Measured(tokens, tokens.select(test), train, predict), settings, arms)
    return values | unseen_shares(tokens, train.target, settings["unseen_loss"]), tables


def corrected_values(
    calibration: States,
    test: States,
    seen: np.ndarray,
    seed: int,
    settings: Mapping[str, Any],
    arms: Sequence[str],
) -> tuple[Values, dict[str, Table]]:
    """Values and tables of one random seed; ``seen`` are the ids that training targets show."""
    limit = settings["tokens_per_split"]
    fitting, tested = read_tokens(calibration, limit), read_tokens(test, limit)
    predict = converged_predictor(fitting, tested, seed, settings["corrected"])
    values, tables = measure(Measured(tested, tested, fitting, predict), settings, arms)
    return values | unseen_shares(tested, seen, settings["unseen_loss"]), tables


def gaussian_d() -> float:
    """Cohen's d between the halves of a normal distribution split at its median: 2 sqrt(2/pi) / sqrt(1 -
    2/pi) = 2.65.

    Each half is half-normal: mean sqrt(2/pi) and variance 1 - 2/pi.
    """
    return 2 * math.sqrt(2 / math.pi) / math.sqrt(1 - 2 / math.pi)


def cohens_d(one: np.ndarray, other: np.ndarray) -> float:
    """Difference of means over sqrt((s1^2 + s2^2) / 2), as the report pools."""
    return float((one.mean() - other.mean()) / math.sqrt((one.var() + other.var()) / 2))


GRID = 2048
"""Points of a density over the whole range of the values."""

TAIL = 0.05
"""Share of the values on either side among which no hump is looked for: a single far value is one."""

NULL_DRAWS = 40
"""Samples of a uniform distribution, the flattest with one mode, that a valley is held against."""


def density(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points (GRID,) and a Gaussian kernel density there (GRID,) of values (N,), with Silverman's rule of
    thumb for the width: 0.9 min(s, IQR / 1.349) N^(-1/5) (Silverman 1986, eq. 3.31)."""
    low, high = np.quantile(values, (0.25, 0.75))
    width = 0.9 * min(values.std(), (high - low) / 1.349) * len(values) ** -0.2
    counts, edges = np.histogram(values, GRID, (values.min() - 3 * width, values.max() + 3 * width))
    step = edges[1] - edges[0]
    reach = np.arange(-int(4 * width / step), int(4 * width / step) + 1) * step
    kernel = np.exp(-0.5 * (reach / width) ** 2)
    smooth = np.convolve(counts, kernel / kernel.sum(), mode="same")
    return (edges[:-1] + edges[1:]) / 2, smooth / (smooth.sum() * step)


def antimode_depth(values: np.ndarray) -> float:
    """How deep the deepest valley of the density of values (N,) is: 1 - valley / the lower of the highest
    points on its two sides, 0 for a density with one hump. The outer ``TAIL`` of the values is left out."""
    points, height = density(values)
    low, high = np.quantile(values, (TAIL, 1 - TAIL))
    height = height[(points >= low) & (points <= high)]
    sides = np.minimum(np.maximum.accumulate(height), np.maximum.accumulate(height[::-1])[::-1])
    return float((1 - height / sides).max())


@cache
def depth_by_chance(count: int) -> float:
    """The depth that 95 % of samples of ``count`` values of a uniform distribution stay below."""
    random = np.random.default_rng(0)
    return float(np.quantile([antimode_depth(random.random(count)) for _ in range(NULL_DRAWS)], 0.95))


def modes(values: np.ndarray) -> Values:
    """Whether values (N,) have two modes, by two tests and by the report's own argument.

    ``dip_p``: Hartigan & Hartigan 1985, small = not unimodal; among 60,000 tokens any lump makes it small, so
    ``dip``, the distance to the nearest unimodal distribution, stands beside it. ``two_modes``: the depth of
    the deepest valley of their density, 0 where the dip test does not reject one mode at 5 % or a uniform
    distribution shows such a valley by chance. ``median_over_quartiles``: the density at the median over the
    lower of those at the quartiles; the report takes the quartiles for the tops of two humps, which makes it
    less than 1.
    """
    dip, dip_p = diptest(values)
    depth, chance = antimode_depth(values), depth_by_chance(len(values))
    at = np.interp(np.quantile(values, (0.25, 0.5, 0.75)), *density(values))
    return {
        "dip": float(dip),
        "dip_p": float(dip_p),
        "antimode_depth": depth,
        "two_modes": depth if dip_p < 0.05 and depth > chance else 0.0,
        "median_over_quartiles": float(at[1] / min(at[0], at[2])),
    }


def loss_shape(loss: np.ndarray, vocab_size: int) -> Values:
    """The distribution of loss (N,) in nats, what an oracle split makes of it, and its modes.

    ``bic_gain``: positive = two Gaussians fit better than one, which any skewed distribution does too.
    """
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
        "bic_gain": float(one - two),
        "worse_than_uniform": float((loss > math.log(vocab_size)).mean()),
        **modes(loss),
    }


def unseen_shares(tokens: Tokens, seen: np.ndarray, above: float) -> Values:
    """Share of targets that are not among the ids ``seen``, of all tokens and of those with a loss over
    ``above`` nats."""
    unseen = ~np.isin(tokens.target, seen)
    worst = unseen[tokens.loss > above]
    return {
        "unseen_target_share": float(unseen.mean()),
        f"unseen_target_share_above{above:g}": float(worst.mean()) if len(worst) else None,
    }


def correct_prob_values(tokens: Tokens, thresholds: list[float]) -> Values:
    """p(correct token) as a score which is exp(-loss) and so the oracle by identity, split at its median and
    at fixed thresholds."""
    probability, loss = tokens.correct_prob, tokens.loss
    at_median = median_split(probability, loss)
    out: Values = {
        "r": correlation(probability, loss),
        "gap": at_median["gap"],
        "oracle_share": at_median["oracle_share"],
    }
    for threshold in thresholds:
        easy = probability >= threshold
        sides = split(easy, loss)
        out |= {
            f"t{threshold:g}.share": float(easy.mean()),
            f"t{threshold:g}.easy": sides["easy"],
            f"t{threshold:g}.hard": sides["hard"],
        }
    return prefixed("correct_prob", out)


def report_linear(fitting: Tokens, settings: Mapping[str, Any]) -> tuple[nn.Module, float]:
    """The report's linear classifier: full-batch Adam on the summed squared error of the loss, stopped after
    a few steps.

    Returns it and its threshold, the quantile ``easy_share`` of the losses it predicts for ``fitting``.
    ``settings``: learning_rate, steps, easy_share, seed.
    """
    network = relu_network(fitting.hidden.shape[1], [], settings["seed"])
    train_network(
        network,
        (fitting.hidden, torch.from_numpy(fitting.loss).float()),
        lambda x, y: F.mse_loss(x, y, reduction="sum"),
        torch.optim.Adam(network.parameters(), lr=settings["learning_rate"]),
        batch_size=len(fitting),
        epochs=settings["steps"],
        seed=settings["seed"],
    )
    return network, float(np.quantile(outputs(network, fitting.hidden), settings["easy_share"]))


def regression_values(predicted: np.ndarray, loss: np.ndarray) -> Values:
    """Quality of a predicted loss (N,), and of the median split by it."""
    error = float(((predicted - loss) ** 2).mean())
    at_median = median_split(-predicted, loss)
    return {
        "mse": error,
        "r": correlation(predicted, loss),
        "std_share": float(predicted.std() / loss.std()),
        "two_modes": modes(predicted)["two_modes"],
        "r2": 1 - error / float(loss.var()),
        "gap": at_median["gap"],
        "oracle_share": at_median["oracle_share"],
    }


def f1_hard(hard: np.ndarray, called_hard: np.ndarray) -> float:
    """F1 with HARD as the positive class, the one that gives the report's figures."""
    return float(2 * (hard & called_hard).sum() / (hard.sum() + called_hard.sum()))


def classification_values(
    log_odds: np.ndarray, loss: np.ndarray, easy_loss: float, median_gap: float
) -> Values:
    """A classifier of "loss <= ``easy_loss``" beside always answering HARD; losses of the sides are by its
    decision.

    ``share_of_median_gap`` divides by the oracle's gap at one half whatever the share of easy tokens, a flaw
    of the report. ``half_oracle_share`` is of the half with the highest log-odds.
    """
    hard, called_easy = loss > easy_loss, log_odds > 0
    sides = split(called_easy, loss)
    share = float(hard.mean())
    return {
        "accuracy": float((hard == ~called_easy).mean()),
        "f1": f1_hard(hard, ~called_easy),
        **sides,
        "easy_fraction": float(called_easy.mean()),
        "majority_accuracy": max(share, 1 - share),
        "majority_f1": f1_hard(hard, np.ones_like(hard)),
        "share_of_median_gap": None if sides["gap"] is None else sides["gap"] / median_gap,
        "half_oracle_share": median_split(log_odds, loss)["oracle_share"],
    }


def measure(
    measured: Measured, settings: Mapping[str, Any], arms: Sequence[str]
) -> tuple[Values, dict[str, Table]]:
    """All values and tables of one protocol but the shares of unseen targets."""
    tokens, test = measured.tokens, measured.test
    values = loss_shape(tokens.loss, tokens.vocab_size) | correct_prob_values(
        tokens, settings["correct_prob"]
    )
    linear, threshold = report_linear(measured.reference, settings["linear"])
    predicted = outputs(linear, tokens.hidden)
    sides = split(predicted < threshold, tokens.loss)
    spread = float(predicted.std())
    values |= prefixed(
        "report_linear",
        {
            "r": correlation(predicted, tokens.loss),
            "std": spread,
            "std_share": spread / float(tokens.loss.std()),
            "share_of_median_gap": None if sides["gap"] is None else sides["gap"] / values["oracle_gap"],
            "two_modes": modes(predicted)["two_modes"],
            **sides,
        },
    )
    scores = {"oracle": -test.loss, "the report's linear": -outputs(linear, test.hidden)}
    splits = [
        ("oracle at one half", values["oracle_easy"], values["oracle_hard"]),
        ("the report's linear", sides["easy"], sides["hard"]),
    ]
    for name in arms:
        hidden = ARMS[name]
        predicted = measured.predict(lambda some: some.loss, hidden, "value")
        values |= prefixed(f"regress.{name}", regression_values(predicted, test.loss))
        log_odds = measured.predict(lambda some: some.loss <= settings["easy_loss"], hidden, "event")
        classified = classification_values(log_odds, test.loss, settings["easy_loss"], values["oracle_gap"])
        values |= prefixed(f"classify.{name}", classified)
        scores[f"regress {name}"] = -predicted
        splits.append((f"classify {name}", classified["easy"], classified["hard"]))
    tables = {
        "loss_histogram": loss_histogram(tokens.loss),
        "risk_coverage": risk_coverage(scores, test.loss),
        "easy_hard": bars(splits),
    }
    return values, tables


def loss_histogram(loss: np.ndarray, width: float = 0.5, highest: float = 25.0) -> Table:
    """Share of tokens per half-nat bin, named by its centre; the last bin also holds what is above."""
    bins = round(highest / width)
    counts = np.bincount(np.minimum((loss / width).astype(np.int64), bins - 1), minlength=bins)
    return [{"loss": (i + 0.5) * width, "share": float(count / len(loss))} for i, count in enumerate(counts)]


def published_predictor(tokens: Tokens, settings: Mapping[str, Any]) -> tuple[Predictor, np.ndarray]:
    """The report's regressors and classifiers, trained on a random part of ``tokens``; and the indices of its
    test tokens.

    Its script is lost: optimiser and stopping are chosen here so that they converge. Adam, raw states, MSE of
    the standardised value or binary cross-entropy. ``settings``: fit_share, select_share, seed,
    learning_rate, batch_size, max_epochs, patience.
    """
    seed = settings["seed"]
    fit, select, test = random_shares(len(tokens), settings["fit_share"], settings["select_share"], seed)

    def predict(wanted: Wanted, hidden: Sequence[int], kind: Kind) -> np.ndarray:
        values = wanted(tokens).astype(np.float64)
        labels, centre, spread = torch.from_numpy(values).float(), 0.0, 1.0
        if kind == "value":
            labels, centre, spread = standardise(values, values[fit])
        network = relu_network(tokens.hidden.shape[1], hidden, seed)
        train_network(
            network,
            (tokens.hidden[fit], labels[fit]),
            F.mse_loss if kind == "value" else F.binary_cross_entropy_with_logits,
            torch.optim.Adam(network.parameters(), lr=settings["learning_rate"]),
            batch_size=settings["batch_size"],
            epochs=settings["max_epochs"],
            seed=seed,
            select=(tokens.hidden[select], labels[select]),
            patience=settings["patience"],
        )
        return centre + spread * outputs(network, tokens.hidden[test])

    return predict, test
