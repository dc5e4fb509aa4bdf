"""What the studies of seed 004 share: tokens of a one-exit model, networks that predict, and splits by a score.

Both studies measure the same things under two protocols. *Published* is the seed's own procedure: one model whose
embedding was never trained, everything computed on the split that stopped its training early, predictors trained on a
random part of that split's tokens. *Corrected*: predictors fitted until they converge on calibration documents,
everything reported on test documents, one value per seed. N tokens, D width.
"""

from __future__ import annotations

import argparse
import copy
import logging
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from offramp.artifacts.artifact import open_artifact
from offramp.errors import UserError
from offramp.exits.classifier import ExitClassifier, fit_classifier
from offramp.exits.ranking import loss_gap, most_confident
from offramp.exits.train import PARTS, split_calibration
from offramp.machine.device import setup
from offramp.states.store import States
from studies.common.cache import folder
from studies.common.first_block import published as make_published
from studies.common.results import write_results
from studies.common.text import CORPORA, study_text
from studies.common.words import word_models

SCORES = ("max_prob", "max_logit", "max_minus_mean", "margin")
"""The inference-time scores of seed 004; higher = surer."""

Kind = Literal["value", "event"]
Values = dict[str, float | None]
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Tokens:
    """What is known of N tokens at exit 0: hidden states (N, D) float32 and columns (N,); losses in nats."""

    hidden: Tensor
    loss: np.ndarray
    correct_prob: np.ndarray
    scores: dict[str, np.ndarray]
    target: np.ndarray
    document: np.ndarray
    vocab_size: int

    def __len__(self) -> int:
        return len(self.loss)

    def select(self, rows: np.ndarray) -> Tokens:
        """The tokens ``rows`` (indices or a mask), in that order."""
        scores = {name: values[rows] for name, values in self.scores.items()}
        return Tokens(
            self.hidden[torch.from_numpy(rows)],
            self.loss[rows],
            self.correct_prob[rows],
            scores,
            self.target[rows],
            self.document[rows],
            self.vocab_size,
        )


def read_tokens(path: Path, limit: int | None = None) -> Tokens:
    """Exit 0 of a ``states`` artifact: all tokens, or ``limit`` of them evenly spaced. UserError if there is none."""
    states = States(open_artifact(path, "states", verify=False))
    rows = np.zeros(states.num_tokens, dtype=bool)
    rows[
        np.linspace(0, states.num_tokens - 1, min(limit or states.num_tokens, states.num_tokens)).astype(
            np.int64
        )
    ] = True

    def column(name: str) -> np.ndarray:
        values = states.column(name)[rows]
        return values.astype(np.float64) if values.dtype.kind == "f" else values

    scores = {name: column(f"{name}_0") for name in ("max_prob", "max_logit", "margin")}
    scores["max_minus_mean"] = scores["max_logit"] - column("mean_logit_0")
    return Tokens(
        states.hidden(0, rows),
        column("loss_0"),
        column("correct_prob_0"),
        scores,
        column("target"),
        column("document"),
        states.artifact.meta["vocab_size"],
    )


# Splits by a score --------------------------------------------------------------------------------------------------


def correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    """Pearson's r; None for fewer than three values or a constant one."""
    if len(one) < 3 or not one.std() or not other.std():
        return None
    return float(np.corrcoef(one, other)[0, 1])


def split(easy: np.ndarray, loss: np.ndarray) -> Values:
    """Mean losses of the two sides of a split in nats, their gap, and its share of the gap the true loss would give at
    the SAME easy fraction (flaw J3: the seed divided by the gap at one half). None where a side is empty."""
    count = int(easy.sum())
    sides = {
        "easy": float(loss[easy].mean()) if count else None,
        "hard": float(loss[~easy].mean()) if count < len(loss) else None,
    }
    if None in sides.values():
        return sides | {"gap": None, "oracle_share": None}
    gap = loss_gap(easy, loss)
    return sides | {"gap": gap, "oracle_share": gap / loss_gap(most_confident(-loss, count), loss)}


def median_split(score: np.ndarray, loss: np.ndarray) -> Values:
    """``split`` into the surer half by ``score`` and the rest; ties go to earlier tokens."""
    return split(most_confident(score, len(loss) // 2), loss)


def prefixed(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{name}.{key}": value for key, value in values.items()}


def bars(sides: list[tuple[str, float | None, float | None]]) -> Rows:
    """Rows of a bar chart from (score, mean loss of easy tokens, of hard tokens); sides without tokens are left out."""
    return [
        {"score": name, "side": side, "loss": value}
        for name, *losses in sides
        for side, value in zip(("easy", "hard"), losses)
        if value is not None
    ]


def risk_coverage(scores: Mapping[str, np.ndarray], loss: np.ndarray, coverages: list[float]) -> Rows:
    """Mean loss in nats of the surest share ``coverage`` of the tokens, by every score."""
    rows = []
    for name, score in scores.items():
        ranked = loss[np.argsort(-score, kind="stable")]
        rows += [
            {
                "score": name,
                "coverage": share,
                "loss": float(ranked[: max(1, round(share * len(loss)))].mean()),
            }
            for share in coverages
        ]
    return rows


# Networks -----------------------------------------------------------------------------------------------------------


def relu_network(width: int, hidden: list[int], seed: int, he: bool = False) -> nn.Sequential:
    """width -> hidden (ReLU) -> 1 with torch's default initialisation, or He's (normal, fan in, zero biases)."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in zip([width, *hidden], [*hidden, 1]):
        layers += [nn.Linear(before, after), nn.ReLU()]
    network = nn.Sequential(*layers[:-1])
    for layer in network:
        if he and isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return network


Loss = Callable[[Tensor, Tensor], Tensor]
Data = tuple[Tensor, Tensor]


def train_network(
    network: nn.Module,
    fit: Data,
    loss: Loss,
    optimiser: torch.optim.Optimizer,
    batch_size: int,
    epochs: int,
    seed: int,
    select: Data | None = None,
    patience: int = 0,
) -> nn.Module:
    """Minimise ``loss`` on (inputs (N, D), targets (N,)) in shuffled batches.

    With ``select``, keep the weights of the epoch with its lowest loss and stop ``patience`` epochs later.
    """
    inputs, targets = fit
    generator = torch.Generator().manual_seed(seed)
    best, best_loss, best_epoch = None, math.inf, 0
    for epoch in range(epochs):
        whole = batch_size >= len(inputs)
        for rows in (
            [slice(None)] if whole else torch.randperm(len(inputs), generator=generator).split(batch_size)
        ):
            optimiser.zero_grad(set_to_none=True)
            loss(network(inputs[rows]).squeeze(-1), targets[rows]).backward()
            optimiser.step()
        if select is None:
            continue
        with torch.no_grad():
            found = loss(network(select[0]).squeeze(-1), select[1]).item()
        if found < best_loss:
            best, best_loss, best_epoch = copy.deepcopy(network.state_dict()), found, epoch
        elif epoch - best_epoch >= patience:
            break
    if best is not None:
        network.load_state_dict(best)
    return network


@torch.no_grad()
def outputs(network: nn.Module, hidden: Tensor) -> np.ndarray:
    """The network's outputs (N,), float64."""
    return network(hidden).reshape(len(hidden)).double().numpy()


def standardise(values: np.ndarray, reference: np.ndarray) -> tuple[Tensor, float, float]:
    """z-scores (N,) float32 by mean and standard deviation of ``reference``, and these two."""
    centre, spread = float(reference.mean()), float(reference.std()) or 1.0
    return torch.from_numpy((values - centre) / spread).float(), centre, spread


Wanted = Callable[[Tokens], np.ndarray]
Predict = Callable[[Wanted, list[int], Kind], np.ndarray]
"""(what to predict of tokens, hidden widths, kind) -> predictions (N,) on the protocol's held-out tokens: the value, or
for an event its log-odds."""


@dataclass(frozen=True)
class Protocol:
    """What one protocol measures on: ``tokens`` for everything that needs no predictor, ``test`` for predictors."""

    tokens: Tokens
    test: Tokens
    reference: Tokens
    """Tokens that decide a score's direction and, where a threshold is fitted, that threshold."""
    predict: Predict


def random_shares(
    count: int, fit: float, select: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token indices drawn at random for fitting, selecting and testing; the test part is the remainder."""
    order = np.random.default_rng(seed).permutation(count)
    first, second = int(fit * count), int(fit * count) + int(select * count)
    return order[:first], order[first:second], order[second:]


def converged_predict(fitting: Tokens, test: Tokens, seed: int, settings: Mapping[str, Any]) -> Predict:
    """Predictors on standardised states, fitted on half of the documents of ``fitting`` until they converge on the other."""
    options = settings["corrected"]
    half = split_calibration(fitting.document, seed) == PARTS.index("fit")

    def predict(wanted: Wanted, hidden: list[int], kind: Kind) -> np.ndarray:
        labels = wanted(fitting)
        classifier = _fit_converged(fitting.hidden, labels, half, hidden, kind, seed, options)
        if kind == "value":
            with torch.no_grad():
                return classifier.costs(test.hidden).squeeze(1).double().numpy()
        return log_odds(
            outputs(classifier, fitting.hidden)[~half], labels[~half], outputs(classifier, test.hidden)
        )

    return predict


def _fit_converged(
    hidden_states: Tensor,
    labels: np.ndarray,
    half: np.ndarray,
    hidden: list[int],
    kind: Kind,
    seed: int,
    options: Mapping[str, Any],
) -> ExitClassifier:
    """The package's own fit: a value is a cost to it, an event one of its binary labels."""
    wanted = torch.from_numpy(labels.astype(np.float32))[:, None]
    parts = [
        (hidden_states[rows], wanted[rows]) for rows in (torch.from_numpy(half), torch.from_numpy(~half))
    ]
    name = f"{kind} predictor {hidden}"
    found = fit_classifier(
        *parts,
        "loss_regression" if kind == "value" else "correct",
        hidden,
        options["learning_rate"],
        options["batch_size"],
        options["max_epochs"],
        options["patience"],
        seed,
        name=name,
    )
    if not found.converged:
        logging.warning(
            "the %s of seed %d has not converged after %d epochs", name, seed, options["max_epochs"]
        )
    return found.classifier


def log_odds(score: np.ndarray, event: np.ndarray, new_score: np.ndarray) -> np.ndarray:
    """Log-odds (M,) of an event at ``new_score``, by logistic regression of ``event`` (N,) on ``score`` (Platt 1999):
    the package's fit weighs both classes the same, so its zero is not even odds. UserError if the event never varies."""
    if event.all() or not event.any():
        raise UserError(
            "the calibration tokens are all easy or all hard; change easy_loss in pipeline/studies/params.yaml"
        )
    platt = LogisticRegression(C=np.inf).fit(score[:, None], event)
    return platt.decision_function(new_score[:, None])


# Running a study ----------------------------------------------------------------------------------------------------

Measured = tuple[Values, dict[str, Rows]]


def mean_rows(tables: list[Rows], value: str) -> Rows:
    """One table whose column ``value`` is the mean over equally laid out ``tables``."""
    return [
        {**rows[0], value: float(np.mean([row[value] for row in rows]))} for rows in zip(*tables, strict=True)
    ]


def run_study(
    study: str,
    flaws: list[str],
    settings: Mapping[str, Any],
    published: Callable[[Path], Measured],
    corrected: Callable[[Path, int], Measured],
    corpus: str,
    protocol: str,
    root: Path,
    text: Mapping[str, Any],
) -> Path:
    """Measure the protocols asked for and write the result file; figures of several seeds are averaged."""
    setup("cpu", settings["threads"])
    made, values, by_seed, figures = folder(root, corpus), None, None, {}
    if protocol in ("published", "both"):
        values, tables = published(made / "published")
        figures |= {f"{name}.published": rows for name, rows in tables.items()}
    if protocol in ("corrected", "both"):
        runs = [corrected(made / "words" / str(seed), seed) for seed in settings["seeds"]]
        by_seed = [found for found, _ in runs]
        figures |= {
            f"{name}.corrected": mean_rows([tables[name] for _, tables in runs], list(rows[0])[-1])
            for name, rows in runs[0][1].items()
        }
    return write_results(
        study, corpus, dict(text), flaws if values is not None else [], values, by_seed, figures, root
    )


def study_main(run: Callable[..., Path], study: str) -> None:
    """The command line ``--corpus sotu|wikitext --protocol published|corrected|both``, from the repository root.

    Makes the states that are missing first.
    """
    logging.basicConfig(level=logging.INFO, format=f"{study}: %(message)s", stream=sys.stderr)
    parser = argparse.ArgumentParser(prog=f"python -m pipeline.studies.{study}")
    parser.add_argument("--corpus", required=True, choices=CORPORA)
    parser.add_argument("--protocol", default="both", choices=("published", "corrected", "both"))
    arguments = parser.parse_args()
    try:
        text = study_text(arguments.corpus)
        if arguments.protocol != "corrected":
            make_published(text)
        if arguments.protocol != "published":
            word_models(text)
        logging.info("wrote %s", run(arguments.corpus, arguments.protocol, Path("."), text.record()))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
