"""Who may leave: exit policies for the executor, and the thresholds they act on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from offramp.exits.classifier import ExitClassifier, classifier_inputs
from offramp.exits.signals import LEARNED, SIGNALS, raw_signal
from offramp.exits.store import Exits
from offramp.models.native import BlockwiseLM
from offramp.routing.executor import Decision
from offramp.states.statistics import STATISTICS, Readout, token_statistics
from offramp.states.store import States


class Scorer:
    """Turns what is known of tokens at an exit into calibrated confidences."""

    def __init__(self, exits: Exits, signal: str, device: torch.device):
        self.signal, self.inputs, self.device = signal, exits.config["inputs"], device
        earlier = range(exits.config["exits"] - 1)
        self.calibrators = [exits.calibrator(exit, signal) for exit in earlier]
        self.classifiers: list[ExitClassifier] = (
            [exits.classifier(exit).to(device) for exit in earlier] if signal == LEARNED else []
        )
        self.needs_statistics = signal != LEARNED or self.inputs != "state"

    @torch.no_grad()
    def __call__(self, exit: int, states: Tensor | None, statistics: dict[str, Tensor] | None) -> Tensor:
        """Confidences (N,) in [0, 1] from hidden states (N, D) and readout statistics, each where the signal needs it."""
        if self.signal != LEARNED:
            return self.calibrators[exit](raw_signal(self.signal, statistics))
        table = torch.stack([statistics[name] for name in STATISTICS], dim=1) if self.needs_statistics else None
        hidden = states.float() if self.inputs != "statistics" else None
        return self.calibrators[exit](self.classifiers[exit](classifier_inputs(self.inputs, hidden, table)))

    def on_cached(self, states: States) -> np.ndarray:
        """Confidences (K-1, tokens) of a states artifact: for the first exit equal to the routed ones up to
        the rounding of stored states; for later ones as if nobody had left before."""
        found = []
        for exit in range(len(self.calibrators)):
            parts, start = [], 0
            columns = {name: torch.from_numpy(states.column(f"{name}_{exit}")) for name in STATISTICS}
            for hidden in states.hidden_shards(exit):
                rows = {name: column[start : start + len(hidden)].to(self.device) for name, column in columns.items()}
                parts.append(self(exit, hidden.to(self.device), rows).cpu())
                start += len(hidden)
            found.append(torch.cat(parts).numpy())
        return np.stack(found) if found else np.zeros((0, states.num_tokens))


class ThresholdPolicy:
    """A token leaves at the first exit whose confidence reaches that exit's threshold."""

    def __init__(self, model: BlockwiseLM, scorer: Scorer, thresholds: list[float]):
        self.model, self.scorer, self.thresholds = model, scorer, thresholds
        self.readouts = [Readout(model.readout_matrix(exit)) for exit in range(len(thresholds))]
        self.reads_out = scorer.needs_statistics
        self.flops_per_token = scorer.classifiers[0].flops if scorer.classifiers else 0

    def decide(self, exit: int, states: Tensor, index: Tensor, targets: Tensor) -> Decision:
        if not self.reads_out:
            confidence = self.scorer(exit, states, None)
            return Decision(confidence >= self.thresholds[exit], confidence)
        normed = self.model.readout_input(exit, states)
        statistics = token_statistics([normed], [self.readouts[exit]], targets)[0]
        confidence = self.scorer(exit, states, statistics)
        return Decision(confidence >= self.thresholds[exit], confidence, statistics["loss"], statistics["argmax"])


class GivenExits:
    """Exits laid down beforehand, per token of the batch (B * T,): random exits, oracles, fixed depths."""

    reads_out, flops_per_token = False, 0

    def __init__(self, exits: Tensor):
        self.exits = exits

    def decide(self, exit: int, states: Tensor, index: Tensor, targets: Tensor) -> Decision:
        return Decision(self.exits[index] == exit)


def auto_thresholds(confidences: np.ndarray, ratio: float) -> list[float]:
    """Per exit, the threshold that lets a share ``ratio`` of the arriving calibration tokens leave (seed 003).

    confidences (K-1, tokens).
    """
    thresholds, here = [], np.ones(confidences.shape[1], dtype=bool)
    for row in confidences:
        threshold = float(np.quantile(row[here], 1 - ratio)) if here.any() else 1.0
        thresholds.append(threshold)
        here &= row < threshold
    return thresholds


def exits_by_share(scores: np.ndarray, counts: list[int]) -> np.ndarray:
    """Give the ``counts[k]`` highest-scoring tokens still in at exit k that exit; the rest go to full depth.

    scores (K-1, tokens) -> exits (tokens,).
    """
    exits = np.full(scores.shape[1], scores.shape[0], dtype=np.int64)
    for exit, (row, count) in enumerate(zip(scores, counts)):
        waiting = np.flatnonzero(exits == scores.shape[0])
        exits[waiting[np.argsort(-row[waiting], kind="stable")[:count]]] = exit
    return exits


def control_scores(states: States, name: str, rows: np.ndarray, seed: int) -> np.ndarray:
    """Scores (K-1, rows) by which a control picks who leaves: random (the floor), or an oracle that knows the target.

    ``gain_oracle`` lets go where depth would gain least: the ceiling for two exits, and greedy, exit by exit, for more.
    ``loss_oracle`` lets go where the loss here is least: what knowing difficulty alone would buy.
    """
    last = states.num_exits - 1
    if name == "random":
        return np.random.default_rng(seed).random((last, len(rows)))
    losses = [states.column(f"loss_{exit}")[rows] for exit in range(last + 1)]
    return np.stack([losses[last] - losses[exit] if name == "gain_oracle" else -losses[exit] for exit in range(last)])


ALL_SIGNALS = (LEARNED, *SIGNALS)
CONTROLS = ("random", "loss_oracle", "gain_oracle")
