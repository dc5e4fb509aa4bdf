"""Routing of experiments 9 to 11 of the report character-systems: one early exit, by the largest probability.

It is executed, so that nothing is computed for a token that left, or counted as the report counted it:
every layer computed for every token, and the saving a formula over layers.

Shapes: B windows, T tokens of a window, N = B T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from offramp.models.native import BlockwiseLM
from offramp.routing.cost import executed_flops, full_depth_flops, layer_saving
from offramp.routing.executor import Executor, Work
from offramp.routing.policies import FixedExit, GivenExits
from offramp.systems.confidence_routing import MaxProbPolicy, with_exits
from studies.common.characters import WINDOW
from studies.common.layer_statistics import LayerStatistics
from studies.common.layered_models import LayeredModels, build

Windows = tuple[Tensor, Tensor]
"""Inputs and targets, each (B, T)."""
TOGETHER = 64
"""Windows in one pass: more leave the cache, and take half as long again."""
NOBODY = 2.0
"""A threshold that no probability reaches."""


@dataclass(frozen=True)
class Routed:
    """What a way of using a model gives on some text; ``early``, ``loss``, ``right`` are (N,)."""

    early: np.ndarray
    loss: np.ndarray
    right: np.ndarray
    layers: float
    """Share of the layers run, of those of full depth."""
    flops: float
    """Share of the FLOPs executed, of those of full depth of the same model, readouts and keys/values
    included."""

    @property
    def nll(self) -> float:
        return float(self.loss.mean(dtype=np.float64))

    @property
    def ppl(self) -> float:
        return float(np.exp(self.nll))

    @property
    def accuracy(self) -> float:
        return float(self.right.mean())

    @property
    def shallow(self) -> float:
        """The share of tokens that left early."""
        return float(self.early.mean())


def execute(
    model: BlockwiseLM,
    exit_after: int,
    windows: Windows,
    threshold: float | None = None,
    leaves: np.ndarray | None = None,
) -> Routed:
    """Run ``model`` with an exit after layer ``exit_after``, counted from 1; nothing skipped is computed.

    A token leaves where its confidence reaches ``threshold``, or as ``leaves`` (N,) lays down; with neither
    nobody is asked.
    """
    layers = sum(model.config.block_layers)
    cut = with_exits(model, (exit_after, layers - exit_after))
    policy = MaxProbPolicy(cut, [threshold]) if threshold is not None else None
    return _routed(cut, windows, policy, None if leaves is None else _like(leaves, windows[0]))


def execute_all_early(model: BlockwiseLM, exit_after: int, windows: Windows) -> Routed:
    """Every token leaves after layer ``exit_after``, and nobody is asked."""
    layers = sum(model.config.block_layers)
    return _routed(with_exits(model, (exit_after, layers - exit_after)), windows, FixedExit(0))


def _routed(
    cut: BlockwiseLM, windows: Windows, policy: MaxProbPolicy | FixedExit | None, leaves: Tensor | None = None
) -> Routed:
    """Under ``policy``, or as ``leaves`` (B, T) lays down."""
    (tokens, targets), work, executor, batches = windows, Work(), Executor(cut), []
    for start in range(0, len(tokens), TOGETHER):
        batch = slice(start, start + TOGETHER)
        of_batch = policy if leaves is None else GivenExits(1 - leaves[batch].long().flatten())
        routed = executor.run(tokens[batch], targets[batch], of_batch, work)
        batches.append([part.flatten() for part in (routed.exit == 0, routed.loss, routed.argmax)])
    early, loss, argmax = (torch.cat(parts).numpy() for parts in zip(*batches))
    flops = executed_flops(cut, work) / full_depth_flops(cut, work.tokens, tokens.shape[1])
    return Routed(early, loss, argmax == targets.flatten().numpy(), 1 - layer_saving(cut, work), flops)


def _like(values: np.ndarray, windows: Tensor) -> Tensor:
    return windows.new_tensor(values).view(windows.shape)


def as_published(statistics: LayerStatistics, exit_after: int, threshold: float) -> Routed:
    """The same as the report counted it: no layer is skipped, and ``flops`` are those of full depth."""
    layers, exit = len(statistics.loss), exit_after - 1
    early = statistics.max_prob[exit] >= threshold
    loss, right = (np.where(early, part[exit], part[-1]) for part in (statistics.loss, statistics.correct))
    run = np.where(early, exit_after, layers).mean() / layers
    return Routed(early, loss, right, float(run), 1.0)


def quantile_threshold(confidence: np.ndarray, share: float) -> float:
    """The threshold that the ``share`` of most confident tokens (N,) reaches."""
    return float(np.quantile(confidence, 1 - share, method="lower"))


def share_within(
    model: BlockwiseLM, exit_after: int, windows: Windows, confidence: np.ndarray, budget: float
) -> float:
    """The share of early exits at which the executed FLOPs are ``budget``, a share of full depth's.

    ``confidence`` (N,) is that at the exit. Between two runs: FLOPs fall with the share in a line, but for
    the rows of sequences that nobody is left in.
    """
    ways = [
        execute(model, exit_after, windows, quantile_threshold(confidence, share)) for share in (0.2, 0.8)
    ]
    slope = (ways[1].flops - ways[0].flops) / (ways[1].shallow - ways[0].shallow)
    return float(np.clip(ways[0].shallow + (budget - ways[0].flops) / slope, 0.0, 1.0))


def depth_flops(layers: int, vocab_size: int, models: LayeredModels) -> int:
    """FLOPs of one token through a model of so many layers."""
    return full_depth_flops(build(vocab_size, layers, models, models.linear_std), 1, WINDOW)
