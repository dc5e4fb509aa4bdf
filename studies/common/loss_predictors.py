"""Networks that predict a token's loss, or a score of it, from its hidden state: as the report trained them,
and converged.

Shared by the studies of the report loss-prediction. Under the published protocol a predictor is trained on a
random part of the tokens that it is tested among; under the corrected one on calibration documents, and
reported on test documents. Shapes: N tokens, D width.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from offramp.errors import UserError
from offramp.exits.classifier import ExitClassifier
from offramp.training.exit_classifiers import fit_classifier
from offramp.training.exits import PARTS, split_calibration
from offramp.training.inputs import HeldInputs
from offramp.training.loop import Best, Row, Selection, Training
from studies.common.token_scores import Tokens

Kind = Literal["value", "event"]
Wanted = Callable[[Tokens], np.ndarray]
"""What is to be predicted: a value (N,) of every token, or a mask (N,) for an event."""


class Predictor(Protocol):
    """A way of training a predictor."""

    def __call__(self, wanted: Wanted, hidden: Sequence[int], kind: Kind) -> np.ndarray:
        """Predictions (N,) on the protocol's held-out tokens of a network with ``hidden`` widths: the value,
        or for an event its log-odds."""


@dataclass(frozen=True)
class Measured:
    """What one protocol measures on."""

    tokens: Tokens
    """Everything that needs no predictor."""
    test: Tokens
    """Predictors."""
    reference: Tokens
    """Tokens that decide a score's direction and, where a threshold is fitted, that threshold."""
    predict: Predictor


def relu_network(width: int, hidden: Sequence[int], seed: int, he: bool = False) -> nn.Sequential:
    """width -> hidden (ReLU) -> 1 with torch's default initialisation, or He's (normal, fan in, zero
    biases)."""
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
    *,
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
    whole = batch_size >= len(inputs)

    def step(epoch: int) -> None:
        order = () if whole else torch.randperm(len(inputs), generator=generator).split(batch_size)
        for rows in order or (slice(None),):
            optimiser.zero_grad(set_to_none=True)
            loss(network(inputs[rows]).squeeze(-1), targets[rows]).backward()
            optimiser.step()

    def look(epoch: int) -> tuple[list[Row], float]:
        assert select is not None
        with torch.no_grad():
            return [], loss(network(select[0]).squeeze(-1), select[1]).item()

    looks = range(1, epochs + 1) if select else ()
    selection = Best(network, patience) if select else Selection[float]()
    Training(step=step, look=look, steps=epochs, looks=looks, selection=selection).run()
    return network


@torch.no_grad()
def outputs(network: nn.Module, hidden: Tensor) -> np.ndarray:
    """The network's outputs (N,), float64."""
    return network(hidden).reshape(len(hidden)).double().numpy()


def standardise(values: np.ndarray, reference: np.ndarray) -> tuple[Tensor, float, float]:
    """z-scores (N,) float32 by mean and standard deviation of ``reference``, and these two."""
    centre, spread = float(reference.mean()), float(reference.std()) or 1.0
    return torch.from_numpy((values - centre) / spread).float(), centre, spread


def random_shares(
    count: int, fit: float, select: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token indices drawn at random for fitting, selecting and testing; the test part is the remainder."""
    order = np.random.default_rng(seed).permutation(count)
    first, second = int(fit * count), int(fit * count) + int(select * count)
    return order[:first], order[first:second], order[second:]


def converged_predictor(fitting: Tokens, test: Tokens, seed: int, settings: Mapping[str, Any]) -> Predictor:
    """Predictors on standardised states, fitted on half of the documents of ``fitting`` until they converge
    on the other.

    ``settings``: learning_rate, batch_size, max_epochs, patience.
    """
    half = split_calibration(fitting.document, seed) == PARTS.index("fit")

    def predict(wanted: Wanted, hidden: Sequence[int], kind: Kind) -> np.ndarray:
        labels = wanted(fitting)
        classifier = _fit_converged(fitting.hidden, labels, half, hidden, kind, seed, settings)
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
    hidden: Sequence[int],
    kind: Kind,
    seed: int,
    settings: Mapping[str, Any],
) -> ExitClassifier:
    """The package's own fit: a value is a cost to it, an event one of its binary labels."""
    wanted = torch.from_numpy(labels.astype(np.float32))[:, None]
    parts = [
        (HeldInputs(hidden_states[rows]), wanted[rows])
        for rows in (torch.from_numpy(half), torch.from_numpy(~half))
    ]
    name = f"{kind} predictor {list(hidden)}"
    fitted = fit_classifier(
        *parts,
        "loss_regression" if kind == "value" else "correct",
        list(hidden),
        learning_rate=settings["learning_rate"],
        batch_size=settings["batch_size"],
        max_epochs=settings["max_epochs"],
        patience=settings["patience"],
        seed=seed,
        name=name,
    )
    if not fitted.converged:
        logging.warning(
            "the %s of random seed %d has not converged after %d epochs", name, seed, settings["max_epochs"]
        )
    return fitted.classifier


def log_odds(score: np.ndarray, event: np.ndarray, new_score: np.ndarray) -> np.ndarray:
    """Log-odds (M,) of an event at ``new_score``, by logistic regression of ``event`` (N,) on ``score``
    (Platt 1999): the package's fit weighs both classes the same, so its zero is not even odds. UserError if
    the event never varies."""
    if event.all() or not event.any():
        raise UserError("the calibration tokens are all easy or all hard; change the study's easy_loss")
    platt = LogisticRegression(C=np.inf).fit(score[:, None], event)
    return platt.decision_function(new_score[:, None])
