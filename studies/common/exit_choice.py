"""Who leaves at an exit, and what it costs: from cached states, and as a policy of the executor.

From cached states what later tokens see of one that left is left out (``propagation_nll`` of the pipeline:
some ten-thousandths of a nat), which makes a signal cost one sort instead of a forward pass. Shapes: N
tokens, K exits, I inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offramp.exits.classifier import ExitClassifier
from offramp.exits.labels import label
from offramp.exits.signals import known_signals, raw_signal
from offramp.models.native import BlockwiseLM
from offramp.routing.executor import Arrivals, Decision, Policy
from offramp.states.statistics import Readout, predictions
from offramp.states.store import States
from offramp.training.exit_classifiers import fit_classifier
from offramp.training.exits import PARTS, split_calibration
from offramp.training.inputs import HeldInputs
from studies.common.product_path import SmallModel

EASY_LOSS = 3.0
"""Of the label "easy": the loss in nats up to which a token is easy."""

VIEWS = (
    "state",
    "statistics",
    "both",
    "state + layer before",
    "state + previous state",
    "state + previous exit",
)
"""What an exit classifier may look at."""


class ConfidencePolicy(Policy):
    """A token leaves block 0 where a classifier's score, or with none the largest probability, reaches a
    threshold."""

    def __init__(self, model: BlockwiseLM, classifier: ExitClassifier | None, threshold: float):
        self.model, self.classifier, self.threshold = model, classifier, threshold
        self.reads_out = classifier is None
        self.flops_per_token = classifier.flops if classifier else 0
        self._readout = Readout(model.readout_matrix(0))

    def decide(self, arrivals: Arrivals) -> Decision:
        if self.classifier is not None:
            confidence = torch.sigmoid(self.classifier(arrivals.states))
            return Decision(confidence >= self.threshold, confidence)
        inputs = self.model.readout_input(0, arrivals.states)
        loss, argmax, confidence = predictions(inputs, self._readout, arrivals.targets)
        return Decision(confidence >= self.threshold, confidence, loss, argmax)


def losses(states: States) -> np.ndarray:
    """Losses in nats (K, N), float64, of every token at every exit."""
    return np.stack([states.column(f"loss_{exit}") for exit in range(states.num_exits)]).astype(np.float64)


def nll_at_share(score: np.ndarray, loss: np.ndarray, share: float) -> float:
    """Mean NLL when the ``share`` of highest score (N,) takes exit 0 and the rest the last one;
    loss (K, N)."""
    leaves = np.zeros(len(score), bool)
    leaves[np.argsort(-score, kind="stable")[: round(share * len(score))]] = True
    return float(np.where(leaves, loss[0], loss[-1]).mean())


def divergences(states: States) -> np.ndarray:
    """KL(full depth || exit) in nats (K, N), float64, of every token at every exit."""
    return np.stack([states.divergence(exit) for exit in range(states.num_exits)]).astype(np.float64)


def standings(
    score: np.ndarray, loss: np.ndarray, divergence: np.ndarray, shares: Sequence[float]
) -> dict[str, float]:
    """``headroom``, ``attained`` and ``nll`` of a score (N,) of two exits by share; loss, divergence (2, N).

    Both are 0 for random exits, which enter with their expectation. Headroom is 1 for the gain oracle, which
    knows the next token; attained is 1 for the divergence oracle, which knows how far full depth's prediction
    lies from the exit's, the most that any signal can know.
    """
    out = {}
    for share in shares:
        leaving = round(share * len(score)) / len(score)
        random = (1 - leaving) * loss[-1].mean() + leaving * loss[0].mean()
        gain_oracle = nll_at_share(loss[-1] - loss[0], loss, share)
        divergence_oracle = nll_at_share(-divergence[0], loss, share)
        nll = nll_at_share(score, loss, share)
        out[f"headroom.{share}"] = (random - nll) / (random - gain_oracle)
        out[f"attained.{share}"] = (random - nll) / (random - divergence_oracle)
        out[f"nll.{share}"] = nll
    return out


class Views:
    """What classifiers at one exit of one model may look at: inputs (N, I) of a split by a name of VIEWS."""

    def __init__(self, model: SmallModel, exit: int):
        self.exit = exit
        self._embedding = model.load().embedding.weight.detach()

    def get(self, states: States, view: str, first_stage: ExitClassifier | None = None) -> Tensor:
        """The inputs ``view``; ``state + previous exit`` looks at the scores of a ``first_stage``, which
        looks at the state."""
        hidden = states.hidden(self.exit)
        if view == "state":
            return hidden
        if view in ("statistics", "both"):
            table = torch.from_numpy(
                np.column_stack([states.statistics(self.exit), states.column(f"saturation_{self.exit}")])
            )
            return table if view == "statistics" else torch.cat((hidden, table), 1)
        if view == "state + layer before":
            tokens = torch.from_numpy(states.column("token").astype(np.int64))
            before = states.hidden(self.exit - 1) if self.exit else self._embedding[tokens]
            return torch.cat((hidden, before), 1)
        if view == "state + previous state":
            return torch.cat((hidden, _previous(hidden, states)), 1)
        if first_stage is None:
            raise ValueError(f"view {view!r} needs a first_stage")
        with torch.no_grad():
            score = first_stage(hidden).unsqueeze(1)
        # what the previous token's own first look said, and whether it would have left at one half
        looks = torch.cat((score, (score >= score.median()).float()), 1)
        return torch.cat((hidden, score, _previous(looks, states)), 1)


def _previous(values: Tensor, states: States) -> Tensor:
    """The row of the token before, zeros at the start of a sequence."""
    shifted = torch.roll(values, 1, 0)
    shifted[torch.from_numpy(states.column("position") == 0)] = 0
    return shifted


def fit_view(
    model: SmallModel,
    views: Views,
    view: str,
    name: str,
    hidden: Sequence[int],
    settings: Mapping[str, Any],
    first_stage: ExitClassifier | None = None,
) -> tuple[ExitClassifier, bool]:
    """A classifier of the label ``name`` from a view, of ``hidden`` widths, and whether its fit converged.

    It is fitted and stopped on calibration documents. ``settings`` is the section exit_classifier of the
    shared settings.
    """
    states = model.calibration
    part = torch.from_numpy(split_calibration(states.column("document"), model.seed))
    fit, select = part == PARTS.index("fit"), part != PARTS.index("fit")  # no promise is tested here
    inputs = views.get(states, view, first_stage)
    labels = torch.from_numpy(label(states, views.exit, name, EASY_LOSS))
    fitted = fit_classifier(
        (HeldInputs(inputs[fit]), labels[fit]),
        (HeldInputs(inputs[select]), labels[select]),
        name,
        list(hidden),
        learning_rate=settings["learning_rate"],
        batch_size=settings["batch_size"],
        max_epochs=settings["max_epochs"],
        patience=settings["patience"],
        seed=model.seed,
        name=f"classifier of {name} from {view}, random seed {model.seed}",
    )
    return fitted.classifier, fitted.converged


def statistic_scores(states: States, exit: int) -> dict[str, np.ndarray]:
    """The signals that need no training, (N,) each by name; higher is surer."""
    columns = states.label_free(exit)
    return {name: np.asarray(raw_signal(name, columns)) for name in known_signals(states.num_exits)}
