"""Thresholds for a rise in perplexity, searched by running them on calibration text.

Candidates lie on the path of least added loss per FLOP; ``routing.search`` says how the furthest of them that
stays within a rise is found.

Shapes: K exits, N tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from offramp.exits.store import Exits
from offramp.models.blockwise import Blockwise
from offramp.routing.cost import executed_flops, exit_costs, full_depth_flops
from offramp.routing.policies import Scorer, ThresholdPolicy
from offramp.routing.search import Text, furthest, predicted_losses
from offramp.routing.split import CachedSplit, RoutedSplit, spread_windows, token_rows
from offramp.routing.thresholds import HeldOut, threshold_path
from offramp.states.store import States
from offramp.training.exits import split_calibration

STEPS = 40
"""Of the path: shares of the tokens by which it moves."""


@dataclass
class Search:
    """The candidates of one signal, and what those that were executed gave."""

    text: Text
    """Calibration windows of documents that no classifier was fitted on."""
    reference: np.ndarray
    """(tokens of the windows,) The control's loss at full depth."""
    scorer: Scorer
    path: list[list[float]]
    predicted: np.ndarray
    """Mean loss of every candidate on the same windows as if none had left."""
    keep_first: int
    tried: dict[int, tuple[float, float]] = field(default_factory=dict)
    """By place on the path: mean loss and saving as executed."""

    def policy(self, place: int) -> ThresholdPolicy:
        return ThresholdPolicy(
            self.text.executor.model, self.scorer, self.path[place], keep_first=self.keep_first
        )

    def run(self, place: int) -> tuple[float, float]:
        """Mean loss and share of FLOPs saved of a candidate, executed."""
        if place not in self.tried:
            routed = self.text.run(self.policy(place))
            self.tried[place] = (
                float(routed.loss.mean(dtype=np.float64)),
                saving_of(self.text, routed, self.scorer),
            )
        return self.tried[place]

    def furthest(self, rise: float, probes: int) -> int:
        """The furthest place, of those that ``probes`` runs find, where executed perplexity is at most a
        share of ``rise`` above the reference. At place 0 nobody leaves, within the rise or not.
        """
        limit = float(np.log1p(rise) + self.reference.mean(dtype=np.float64))
        return furthest(self.predicted, limit, lambda place: self.run(place)[0] <= limit, probes)


def searches(
    text: Text,
    states: States,
    reference: States,
    exits: Exits,
    signals: list[str],
    windows: int,
    keep_first: int,
) -> dict[str, Search]:
    """A search for every signal; ``states`` and ``reference`` are calibration states of arm and control."""
    document = states.column("document")
    held_out = split_calibration(document, exits.artifact.params["exits.seed"]) > 0
    whole = np.flatnonzero(held_out.reshape(-1, states.window).all(1))
    chosen = torch.from_numpy(whole[spread_windows(len(whole), windows).numpy()])
    model, device = text.executor.model, text.executor.device
    may_leave = states.column("position") >= keep_first
    rows, windows_rows = held_out & may_leave, token_rows(chosen, states.window)
    cached, executed = CachedSplit.of(states, rows), CachedSplit.of(states, windows_rows)
    out = {}
    for signal in signals:
        scorer = Scorer(exits, signal, device)
        confidence = scorer.on_cached(states)
        held = HeldOut(
            confidence=confidence[:, rows],
            loss=np.stack(cached.loss),
            argmax=np.stack(cached.argmax),
            target=cached.target,
            sequence=states.column("sequence")[rows],
        )
        path = threshold_path(held, costs_of(model, scorer, states.window), held.risk("nll_increase"), STEPS)
        predicted = predicted_losses(
            confidence[:, windows_rows], np.stack(executed.loss), may_leave[windows_rows], path
        )
        out[signal] = Search(
            text.of(chosen),
            reference.column(f"loss_{reference.num_exits - 1}")[windows_rows],
            scorer,
            path,
            predicted,
            keep_first,
        )
    return out


def costs_of(model: Blockwise, scorer: Scorer, window: int) -> np.ndarray:
    """(K,) FLOPs of leaving at each exit, asking by this signal included, as shares of full depth."""
    return np.array(exit_costs(model, window, scorer.reads_out, scorer.flops_per_token))


def saving_of(text: Text, routed: RoutedSplit, scorer: Scorer) -> float:
    """Share of the FLOPs of full depth that a run did without."""
    model, tokens = text.executor.model, len(routed.loss)
    flops = executed_flops(model, routed.work, scorer.flops_per_token)
    return float(1 - flops / full_depth_flops(model, tokens, text.windows.window))
