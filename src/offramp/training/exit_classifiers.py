"""Fitting one exit classifier to the states of tokens, in the loop that all trainings share (``loop``)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from offramp.errors import UserError
from offramp.exits.classifier import ExitClassifier
from offramp.exits.labels import KINDS
from offramp.machine.watch import NOBODY, Watch
from offramp.training.inputs import Inputs
from offramp.training.loop import Bar, Best, Progress, Row, Training

MATERIAL = 1e-3
"""Relative fall of the selection loss that counts as progress."""
ANNEALINGS, ANNEAL = 3, 0.3
"""How often the learning rate is lowered before a fit without progress has converged, and by what factor."""


@dataclass
class ClassifierFit:
    """A trained classifier and how its training went."""

    classifier: ExitClassifier
    curve: list[Row]
    """Per epoch: epoch, fit_loss, select_loss."""
    best_epoch: int
    converged: bool
    """Stopped because the selection loss no longer fell at any learning rate, rather than at max_epochs."""


class Annealed(Best):
    """The best weights.

    Where looks bring no progress, training goes back to them at a lower learning rate, and at the lowest one
    it ends.
    """

    def __init__(self, model: ExitClassifier, optimiser: torch.optim.Optimizer, patience: int):
        super().__init__(model)
        self.optimiser, self.patience_of_a_rate = optimiser, patience
        self.annealed, self.since = 0, 0
        """How often the rate was lowered, and looks since there was progress."""
        self.progress_loss = math.inf
        """The loss that progress is counted from."""
        self.converged = False

    def judge(self, progress: Progress, measured: float) -> None:
        super().judge(progress, measured)
        self.since += 1
        if measured < self.progress_loss * (1 - MATERIAL):
            self.progress_loss, self.since = measured, 0
        if self.since < self.patience_of_a_rate:
            return
        if self.annealed == ANNEALINGS:
            self.converged = True
            return
        self.annealed, self.since = self.annealed + 1, 0
        self.model.load_state_dict(self.weights)
        for group in self.optimiser.param_groups:
            group["lr"] *= ANNEAL

    def ended(self, progress: Progress) -> bool:
        return self.converged


def fit_classifier(
    fit: tuple[Inputs, Tensor],
    select: tuple[Inputs, Tensor],
    label: str,
    hidden: list[int],
    *,
    learning_rate: float,
    batch_size: int,
    max_epochs: int,
    patience: int,
    seed: int,
    name: str = "exit classifier",
    watch: Watch = NOBODY,
) -> ClassifierFit:
    """Fit a classifier on inputs (N, I) and labels (N, L) until the loss on ``select`` stops falling.

    The optimiser is AdamW.

    Binary labels: binary cross-entropy, both classes weighing the same. Probabilities: squared error of the
    sigmoid. Costs are standardised and regressed; the score is the negative predicted cost, so that higher is
    surer for every label. After ``patience`` epochs without progress the fit goes back to its best weights at
    a lower learning rate; it has converged when that helped no more, ANNEALINGS times. Raises UserError where
    the loss is no finite number any more.
    """
    inputs, labels = fit
    classifier = _new_classifier(inputs, labels, label, hidden, seed)
    loss = _loss_of(classifier, label, labels.mean(0))
    optimiser = torch.optim.AdamW(classifier.parameters(), lr=learning_rate, weight_decay=0.01)
    generator = torch.Generator().manual_seed(seed)
    fit_loss = 0.0

    def epoch(number: int) -> None:
        nonlocal fit_loss
        total = 0.0
        for places, rows in inputs.shuffled(batch_size, generator):
            batch_loss = loss(classifier.outputs(rows), labels[places])
            optimiser.zero_grad(set_to_none=True)
            batch_loss.backward()
            optimiser.step()
            total += batch_loss.item() * len(rows)
        fit_loss = total / len(inputs)
        watch.step(name, number + 1, len(inputs), learning_rate=optimiser.param_groups[0]["lr"])

    def look(epochs: int) -> tuple[list[Row], float]:
        with torch.no_grad():
            select_loss = loss(outputs_of(classifier, select[0]), select[1]).item()
        if not math.isfinite(select_loss):
            raise UserError(
                f"train_exits: the loss of the {name} is {select_loss}; lower exits.learning_rate"
            )
        return [{"epoch": epochs, "fit_loss": fit_loss, "select_loss": select_loss}], select_loss

    selection = Annealed(classifier, optimiser, patience)
    progress = Training(
        step=epoch,
        look=look,
        steps=max_epochs,
        looks=range(1, max_epochs + 1),
        selection=selection,
        bar=Bar(name, unit="epoch"),
        watch=watch,
    ).run()
    return ClassifierFit(classifier.eval(), progress.curve, progress.best_step, selection.converged)


@torch.no_grad()
def outputs_of(classifier: ExitClassifier, inputs: Inputs) -> Tensor:
    """Scores (N, L) of inputs (N, I), part by part."""
    return torch.cat([classifier.outputs(rows) for rows in inputs.parts()])


def _new_classifier(
    inputs: Inputs, labels: Tensor, label: str, hidden: list[int], seed: int
) -> ExitClassifier:
    """A classifier that standardises its inputs, and costs, by those that it will be fitted to."""
    torch.manual_seed(seed)
    classifier = ExitClassifier(inputs.width, hidden, labels.shape[1]).to(inputs.device)
    mean, deviation = inputs.moments()
    classifier.mean.copy_(mean)
    classifier.scale.copy_(1 / deviation.clamp_min(1e-6))
    if KINDS[label] == "cost":
        classifier.centre.copy_(labels.mean(0))
        classifier.spread.copy_(labels.std(0).clamp_min(1e-6))
    return classifier


def _loss_of(classifier: ExitClassifier, label: str, mean: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss of scores (N, L) and labels (N, L), whose mean (L,) is that of the labels fitted to."""
    share = mean.clamp(1e-3, 1 - 1e-3)

    def binary(scores: Tensor, wanted: Tensor) -> Tensor:
        weight = torch.where(wanted > 0.5, 0.5 / share, 0.5 / (1 - share))
        return F.binary_cross_entropy_with_logits(scores, wanted, weight=weight)

    def probability(scores: Tensor, wanted: Tensor) -> Tensor:
        return F.mse_loss(torch.sigmoid(scores), wanted)

    def cost(scores: Tensor, wanted: Tensor) -> Tensor:
        return F.mse_loss(-scores, (wanted - classifier.centre) / classifier.spread)

    return {"binary": binary, "probability": probability, "cost": cost}[KINDS[label]]
