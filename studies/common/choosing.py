"""Who leaves, and what it costs, from cached states: the NLL of a split when given tokens take given exits.

State propagation is left out (``propagation_nll`` of the pipeline: some ten-thousandths of a nat), which makes a signal
cost one sort instead of a forward pass. Shapes: N tokens, K exits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from offramp.exits.classifier import ExitClassifier, fit_classifier
from offramp.exits.labels import label
from offramp.exits.signals import known_signals, raw_signal
from offramp.exits.train import PARTS, split_calibration
from offramp.states.store import States
from studies.common.zoo import ZooModel

EASY_LOSS = 3.0


def losses(states: States) -> np.ndarray:
    """(K, N) float64"""
    return np.stack([states.column(f"loss_{exit}") for exit in range(states.num_exits)]).astype(np.float64)


def nll_at_share(score: np.ndarray, loss: np.ndarray, share: float) -> float:
    """Mean NLL when the ``share`` of highest score (N,) takes exit 0 and the rest the last one; loss (K, N)."""
    leaves = np.zeros(len(score), bool)
    leaves[np.argsort(-score, kind="stable")[: round(share * len(score))]] = True
    return float(np.where(leaves, loss[0], loss[-1]).mean())


def headrooms(score: np.ndarray, loss: np.ndarray, shares: list[float]) -> dict[str, float]:
    """Headroom and NLL by share; random exits enter with their expectation, the gain oracle with the true gain."""
    out = {}
    for share in shares:
        random = (1 - round(share * len(score)) / len(score)) * loss[-1].mean() + round(
            share * len(score)
        ) / len(score) * loss[0].mean()
        oracle, found = nll_at_share(loss[-1] - loss[0], loss, share), nll_at_share(score, loss, share)
        out[f"headroom.{share}"] = (random - found) / (random - oracle)
        out[f"nll.{share}"] = found
    return out


class Views:
    """What an exit classifier may look at, per split of one model, at one exit: named inputs (N, I)."""

    def __init__(self, model: ZooModel, exit: int):
        self.exit = exit
        self._embedding = model.load().embedding.weight.detach()

    def get(self, states: States, view: str, first_stage: ExitClassifier | None = None) -> Tensor:
        """``state``, ``statistics``, ``both``, ``state + layer before``, ``state + previous state``, ``+ previous exit``."""
        hidden = states.hidden(self.exit)
        if view == "state":
            return hidden
        if view in ("statistics", "both"):
            table = torch.from_numpy(
                np.column_stack([states.statistics(self.exit), states.column(f"saturation_{self.exit}")])
            )
            return table if view == "statistics" else torch.cat((hidden, table), 1)
        if view == "state + layer before":
            before = (
                states.hidden(self.exit - 1)
                if self.exit
                else self._embedding[torch.from_numpy(states.column("token").astype(np.int64))]
            )
            return torch.cat((hidden, before), 1)
        if view == "state + previous state":
            return torch.cat((hidden, _previous(hidden, states)), 1)
        with (
            torch.no_grad()
        ):  # what the previous token's own first look said, and whether it would have left at one half
            score = first_stage(hidden).unsqueeze(1)
        looks = torch.cat((score, (score >= score.median()).float()), 1)
        return torch.cat((hidden, score, _previous(looks, states)), 1)


VIEWS = (
    "state",
    "statistics",
    "both",
    "state + layer before",
    "state + previous state",
    "state + previous exit",
)


def _previous(values: Tensor, states: States) -> Tensor:
    """The row of the token before, zeros at the start of a sequence."""
    shifted = torch.roll(values, 1, 0)
    shifted[torch.from_numpy(states.column("position") == 0)] = 0
    return shifted


def fit_view(
    model: ZooModel,
    exit: int,
    name: str,
    views: Views,
    view: str,
    settings: dict[str, Any],
    hidden: list[int],
    first_stage: ExitClassifier | None = None,
) -> tuple[ExitClassifier, bool]:
    """A classifier of label ``name`` from a view, fitted and stopped on calibration documents, and whether it converged."""
    states = model.calibration
    part = torch.from_numpy(split_calibration(states.column("document"), model.seed))
    fit, select = part == PARTS.index("fit"), part != PARTS.index("fit")  # no promise is tested here
    inputs, labels = (
        views.get(states, view, first_stage),
        torch.from_numpy(label(states, exit, name, EASY_LOSS)),
    )
    found = fit_classifier(
        (inputs[fit], labels[fit]),
        (inputs[select], labels[select]),
        name,
        hidden,
        settings["learning_rate"],
        settings["batch_size"],
        settings["max_epochs"],
        settings["patience"],
        model.seed,
        name=f"{model.arm} {model.seed} {name}",
    )
    return found.classifier, found.converged


def statistic_scores(states: States, exit: int) -> dict[str, np.ndarray]:
    columns = states.label_free(exit)
    return {name: np.asarray(raw_signal(name, columns)) for name in known_signals(states.num_exits)}
