"""Exit classifiers: small networks that decide from a token's state (and statistics) whether it may leave."""

from __future__ import annotations

import copy
import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from offramp.errors import UserError
from offramp.exits.labels import KINDS

MATERIAL = 1e-3
"""Relative fall of the selection loss that counts as progress."""
ANNEALINGS, ANNEAL = 3, 0.3
"""How often the learning rate is lowered before a fit that no longer progresses is said to have converged, and how far."""


class ExitClassifier(nn.Module):
    """Standardise -> (Linear -> GELU)* -> Linear, giving one score per token; higher = surer to leave.

    ``hidden`` are the widths between; [] is a linear classifier. One of benefits has an output per later exit.
    """

    def __init__(self, num_inputs: int, hidden: list[int], outputs: int = 1):
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_inputs))
        self.register_buffer("scale", torch.ones(num_inputs))
        self.register_buffer("centre", torch.zeros(outputs))
        self.register_buffer("spread", torch.ones(outputs))
        widths = [num_inputs, *hidden]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.GELU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], outputs))

    def outputs(self, inputs: Tensor) -> Tensor:
        """Scores (N, L) of inputs (N, I): one per label, standardised where labels are costs."""
        return self.layers((inputs - self.mean) * self.scale)

    def forward(self, inputs: Tensor) -> Tensor:
        """Scores (N,) of inputs (N, I); for benefits, of going on to full depth."""
        return self.outputs(inputs)[:, -1]

    def costs(self, inputs: Tensor) -> Tensor:
        """Predicted costs (N, L), in the label's unit, of leaving instead of going on to each later exit."""
        return self.as_costs(self.outputs(inputs))

    def as_costs(self, outputs: Tensor) -> Tensor:
        """What ``outputs`` (N, L) mean in the label's unit."""
        return self.centre - self.spread * outputs

    @property
    def flops(self) -> int:
        """Floating-point operations per token (a multiply-add counts two)."""
        return sum(
            2 * layer.in_features * layer.out_features
            for layer in self.layers
            if isinstance(layer, nn.Linear)
        )


def classifier_inputs(which: str, hidden: Tensor | None, statistics: Tensor | None) -> Tensor:
    """Inputs (N, I) of an exit classifier that sees the ``state``, the ``statistics``, or ``both``."""
    parts = {"state": [hidden], "statistics": [statistics], "both": [hidden, statistics]}[which]
    return torch.cat(parts, dim=1)


@dataclass
class ClassifierFit:
    """A trained classifier and how its training went."""

    classifier: ExitClassifier
    curve: list[dict[str, float]]
    """Per epoch: epoch, fit_loss, select_loss."""
    best_epoch: int
    converged: bool
    """Stopped because the selection loss no longer fell at any learning rate, rather than at max_epochs."""


def fit_classifier(
    fit: tuple[Tensor, Tensor],
    select: tuple[Tensor, Tensor],
    label: str,
    hidden: list[int],
    learning_rate: float,
    batch_size: int,
    max_epochs: int,
    patience: int,
    seed: int,
    name: str = "exit classifier",
) -> ClassifierFit:
    """Fit a classifier on (inputs (N, I), labels (N, L)) with AdamW until the loss on ``select`` stops falling.

    Binary labels: binary cross-entropy, both classes weighing the same. Probabilities: squared error of the sigmoid. Costs
    are standardised and regressed; the score is the negative predicted cost, so that higher is surer for every label.
    After ``patience`` epochs without progress the fit goes back to its best weights at a lower learning rate; it has
    converged when that helped no more, ANNEALINGS times.
    """
    kind = KINDS[label]
    inputs, labels = fit
    torch.manual_seed(seed)
    classifier = ExitClassifier(inputs.shape[1], hidden, labels.shape[1]).to(inputs.device)
    classifier.mean.copy_(inputs.mean(0))
    classifier.scale.copy_(1 / inputs.std(0).clamp_min(1e-6))
    if kind == "cost":
        classifier.centre.copy_(labels.mean(0))
        classifier.spread.copy_(labels.std(0).clamp_min(1e-6))
    share = labels.mean(0).clamp(1e-3, 1 - 1e-3)

    def loss(scores: Tensor, wanted: Tensor) -> Tensor:
        if kind == "binary":
            weight = torch.where(wanted > 0.5, 0.5 / share, 0.5 / (1 - share))
            return F.binary_cross_entropy_with_logits(scores, wanted, weight=weight)
        if kind == "probability":
            return F.mse_loss(torch.sigmoid(scores), wanted)
        return F.mse_loss(-scores, (wanted - classifier.centre) / classifier.spread)

    optimiser = torch.optim.AdamW(classifier.parameters(), lr=learning_rate, weight_decay=0.01)
    generator = torch.Generator().manual_seed(seed)
    best, best_loss, best_epoch, curve = copy.deepcopy(classifier.state_dict()), math.inf, 0, []
    progress_loss, since, annealed = math.inf, 0, 0
    epochs = tqdm(range(1, max_epochs + 1), desc=name, unit="epoch", disable=None)
    for epoch in epochs:
        total = 0.0
        for rows in torch.randperm(len(inputs), generator=generator).split(batch_size):
            rows = rows.to(inputs.device)
            batch_loss = loss(classifier.outputs(inputs[rows]), labels[rows])
            optimiser.zero_grad(set_to_none=True)
            batch_loss.backward()
            optimiser.step()
            total += batch_loss.item() * len(rows)
        with torch.no_grad():
            select_loss = loss(classifier.outputs(select[0]), select[1]).item()
        if not math.isfinite(select_loss):
            raise UserError(
                f"train_exits: the loss of the {name} is {select_loss}; lower exits.learning_rate"
            )
        curve.append({"epoch": epoch, "fit_loss": total / len(inputs), "select_loss": select_loss})
        if select_loss < best_loss:
            best, best_loss, best_epoch = copy.deepcopy(classifier.state_dict()), select_loss, epoch
        since += 1
        if select_loss < progress_loss * (1 - MATERIAL):
            progress_loss, since = select_loss, 0
        if since >= patience:
            if annealed == ANNEALINGS:
                break
            annealed, since = annealed + 1, 0
            classifier.load_state_dict(best)
            for group in optimiser.param_groups:
                group["lr"] *= ANNEAL
    classifier.load_state_dict(best)
    return ClassifierFit(classifier.eval(), curve, best_epoch, annealed == ANNEALINGS and since >= patience)
