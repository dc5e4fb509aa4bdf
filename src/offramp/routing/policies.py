"""Who may leave: exit policies for the executor, and the thresholds they act on."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from offramp.errors import UserError
from offramp.exits.classifier import ExitClassifier, classifier_inputs
from offramp.exits.signals import SIGNALS, raw_signal
from offramp.exits.store import Exits
from offramp.models.blockwise import Blockwise
from offramp.routing.executor import Arrivals, Decision, Policy
from offramp.routing.thresholds import NOBODY
from offramp.states.statistics import SATURATION, STATISTICS, Readout, saturation, token_statistics
from offramp.states.store import States
from offramp.vocabulary import BENEFITS, LEARNED


class Scorer:
    """Turns what is known of tokens at an exit into calibrated confidences."""

    def __init__(self, exits: Exits, signal: str, device: torch.device):
        self.signal, self.inputs, self.device = signal, exits.config["inputs"], device
        self.label, self.exits = exits.config["label"], exits
        earlier = range(exits.config["exits"] - 1)
        self.calibrators = [exits.calibrator(exit, signal) for exit in earlier]
        self.classifiers: list[ExitClassifier] = (
            [exits.classifier(exit).to(device) for exit in earlier] if signal == LEARNED else []
        )
        learned_from_readout = signal == LEARNED and self.inputs != "state"
        self.reads_out = learned_from_readout or (signal != LEARNED and SIGNALS[signal].reads_out)
        self.reads_columns = signal != LEARNED or learned_from_readout
        self.reads_before = signal == SATURATION
        self.keeps_argmax = signal != LEARNED and SIGNALS[signal].reads == "earlier readouts"
        self.width = exits.config["width"]

    @property
    def flops_per_token(self) -> int:
        """Of one decision, without the readout; for classifiers the mean over exits."""
        if self.classifiers:
            return round(sum(classifier.flops for classifier in self.classifiers) / len(self.classifiers))
        return 0 if self.reads_out else SIGNALS[self.signal].flops(self.width, 0)

    @torch.no_grad()
    def __call__(self, exit: int, states: Tensor | None, columns: Mapping[str, Tensor]) -> Tensor:
        """Confidences (N,) in [0, 1] from hidden states (N, D) and label-free columns (N,).

        Of both the signal takes what it needs.
        """
        if self.signal != LEARNED:
            return self.calibrators[exit](raw_signal(self.signal, columns))
        return self.calibrators[exit](self.classifiers[exit](self.classifier_inputs(states, columns)))

    def classifier_inputs(self, states: Tensor | None, columns: Mapping[str, Tensor]) -> Tensor:
        """What the classifiers see of N tokens, from hidden states (N, D) and label-free columns (N,)."""
        table = torch.stack([columns[name] for name in STATISTICS], dim=1) if self.reads_out else None
        hidden = None if self.inputs == "statistics" or states is None else states.float()
        return classifier_inputs(self.inputs, hidden, table)

    def on_cached(self, states: States) -> np.ndarray:
        """Confidences (K-1, tokens) of a states artifact, as if nobody had left before.

        For the first exit they equal the routed ones up to the rounding of stored states.
        """
        confidences = []
        for exit in range(len(self.calibrators)):
            parts, start = [], 0
            columns = states.label_free(exit) if self.reads_columns else {}
            for hidden in states.hidden_shards(exit):
                shard = slice(start, start + len(hidden))
                rows = {  # copies: what is mapped from a file is not to be written to
                    name: torch.from_numpy(column[shard].copy()).to(self.device)
                    for name, column in columns.items()
                }
                parts.append(self(exit, hidden.to(self.device), rows).cpu())
                start += len(hidden)
            confidences.append(torch.cat(parts).numpy())
        return np.stack(confidences) if confidences else np.zeros((0, states.num_tokens))


class ThresholdPolicy(Policy):
    """A token leaves at the first exit, from ``first`` on, whose confidence reaches that exit's threshold.

    Tokens at the ``keep_first`` first positions of a sequence never leave: models lean on the states of its
    first token (attention sinks, arXiv 2309.17453), and a propagated one in its place can spoil every later
    layer of a checkpoint.

    With ``decay`` the threshold t of a token at position p of at most ``window`` is 0.9 t + 0.1 exp(-decay p
    / window), as in CALM (arXiv 2207.07061): early mistakes cost more, since all later tokens build on them.
    """

    def __init__(
        self,
        model: Blockwise,
        scorer: Scorer,
        thresholds: list[float],
        *,
        first: int = 0,
        decay: float | None = None,
        keep_first: int = 0,
    ):
        self.model, self.scorer, self.thresholds = model, scorer, thresholds
        self.first, self.decay, self.keep_first = first, decay, keep_first
        self.readouts = [Readout(model.readout_matrix(exit)) for exit in range(model.config.num_blocks - 1)]
        self.reads_out, self.reads_before = scorer.reads_out, scorer.reads_before
        self.flops_per_token = scorer.flops_per_token

    def decide(self, arrivals: Arrivals) -> Decision:
        columns = self.columns(arrivals)
        leaves, confidence = self.judge(arrivals, columns)
        if self.keep_first:
            leaves &= arrivals.position >= self.keep_first
        return Decision(leaves, confidence, columns.get("loss"), columns.get("argmax"))

    def judge(self, arrivals: Arrivals, columns: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Who would leave, bool (N,), and the confidences (N,)."""
        confidence = self.scorer(arrivals.exit, arrivals.states, columns)
        threshold: float | Tensor = self.thresholds[arrivals.exit]
        if self.decay is not None:
            threshold = 0.9 * threshold + 0.1 * torch.exp(
                -self.decay * arrivals.since / self.model.config.window
            )
        return confidence >= threshold, confidence

    def columns(self, arrivals: Arrivals) -> dict[str, Tensor]:
        """What the signal looks at beside the state, each (N,), with ``loss`` and ``argmax`` of a readout."""
        out: dict[str, Tensor] = {}
        if self.reads_before:
            assert arrivals.before is not None, "the policy says that it reads it"
            out[SATURATION] = saturation(arrivals.before, arrivals.states)
        if self.reads_out:
            assert arrivals.read is not None, "the policy says that it reads it"
            normed = self.model.readout_input(arrivals.exit, arrivals.read)
            out |= token_statistics([normed], [self.readouts[arrivals.exit]], arrivals.targets)[0]
        if self.scorer.keeps_argmax:
            out["patience"] = self._patience(arrivals, out["argmax"])
        return out

    def _patience(self, arrivals: Arrivals, argmax: Tensor) -> Tensor:
        """Share of earlier exits that, counted back without a gap, predicted the same.

        Every token passes exit 0.
        """
        index = arrivals.index
        if arrivals.exit == 0:
            size = int(index[-1]) + 1
            self._argmax, self._streak = (
                argmax.new_empty(size).index_copy_(0, index, argmax),
                torch.zeros(size, device=argmax.device),
            )
            return self._streak[index]
        streak = torch.where(self._argmax[index] == argmax, self._streak[index] + 1, 0.0)
        self._argmax[index], self._streak[index] = argmax, streak
        return streak / arrivals.exit


class PricePolicy(ThresholdPolicy):
    """A token goes on while a deeper exit promises more gain per FLOP than one price, the same for all.

    ``price`` is in nats for the FLOPs of one full-depth pass; ``costs`` (K,) are those of leaving after exit
    k, as shares of it (``routing.cost.exit_costs``). Gains are what classifiers of a benefit (labels gain,
    divergence) predict, times the slope of the true gain on their predictions on calibration text
    (``exits.calibration.gain_slope``): a divergence is the gain only where full depth is calibrated. A slope
    below 0 counts as 0: there is no gain to be had. This is the rule of optimal stopping with the gains known
    at the exit: go on if max_j (gain_kj - price * (cost_j - cost_k)) > 0.

    UserError for another signal or label, and where the slopes are missing.
    """

    def __init__(
        self,
        model: Blockwise,
        scorer: Scorer,
        price: float,
        costs: list[float],
        *,
        first: int = 0,
        keep_first: int = 0,
    ):
        if scorer.signal != LEARNED or scorer.label not in BENEFITS:
            raise UserError(
                "threshold: price weighs a predicted gain, so it needs exits.confidence: learned with "
                f"exits.label gain or divergence, not {scorer.signal} with label {scorer.label}"
            )
        super().__init__(model, scorer, [], first=first, keep_first=keep_first)
        self.price, self.costs = price, costs
        self.slopes = [
            torch.tensor(scorer.exits.gain_slopes(exit), device=scorer.device).clamp_min(0)
            for exit in range(len(scorer.classifiers))
        ]

    @torch.no_grad()
    def judge(self, arrivals: Arrivals, columns: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        exit = arrivals.exit
        classifier = self.scorer.classifiers[exit]
        outputs = classifier.outputs(self.scorer.classifier_inputs(arrivals.states, columns))
        gains = self.slopes[exit] * classifier.as_costs(outputs)
        confidence = self.scorer.calibrators[exit](outputs[:, -1])
        ahead = torch.tensor(
            [cost - self.costs[exit] for cost in self.costs[exit + 1 :]], device=gains.device
        )
        return (gains <= self.price * ahead).all(1), confidence


class FixedExit(Policy):
    """Every token leaves after block ``exit``."""

    def __init__(self, exit: int):
        self.first = exit

    def decide(self, arrivals: Arrivals) -> Decision:
        return Decision(torch.ones_like(arrivals.index, dtype=torch.bool))


class GivenExits(Policy):
    """Exits laid down beforehand, per token of the batch (B * T,): random exits, oracles, fixed depths."""

    def __init__(self, exits: Tensor):
        self.exits = exits

    def decide(self, arrivals: Arrivals) -> Decision:
        return Decision(self.exits[arrivals.index] == arrivals.exit)


def auto_thresholds(confidences: np.ndarray, ratio: float) -> list[float]:
    """Per exit, the threshold at which a share ``ratio`` of arriving tokens leaves (report exit-labels).

    confidences (K-1, tokens). Where some tie, so that more than that would leave, the threshold is the next
    higher confidence, and 1 where there is none: then nobody leaves.
    """
    thresholds, arriving = [], np.ones(confidences.shape[1], dtype=bool)
    for row in confidences:
        threshold = _ratio_threshold(row[arriving], ratio) if arriving.any() else NOBODY
        thresholds.append(threshold)
        arriving &= row < threshold
    return thresholds


def _ratio_threshold(confidence: np.ndarray, ratio: float) -> float:
    """The threshold at which at most ``ratio`` of the tokens leave, rounded up to a whole one."""
    threshold = float(np.quantile(confidence, 1 - ratio))
    most = math.ceil(ratio * len(confidence) - 1e-9)
    if (confidence >= threshold).sum() <= most:
        return threshold
    falling = np.sort(confidence)[::-1]
    higher = falling[falling > falling[most]]
    return float(higher[-1]) if len(higher) else NOBODY


def exits_by_share(scores: np.ndarray, counts: list[int], free: np.ndarray | None = None) -> np.ndarray:
    """Give the ``counts[k]`` highest-scoring tokens still in at exit k that exit; the rest go to full depth.

    scores (K-1, tokens), free bool (tokens,): who may leave at all (None: all) -> exits (tokens,).
    """
    exits = np.full(scores.shape[1], scores.shape[0], dtype=np.int64)
    for exit, (row, count) in enumerate(zip(scores, counts)):
        waiting = np.flatnonzero((exits == scores.shape[0]) & (True if free is None else free))
        exits[waiting[np.argsort(-row[waiting], kind="stable")[:count]]] = exit
    return exits
