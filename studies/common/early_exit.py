"""Routing of experiments 9 to 11 of the report character-systems: one early exit, by the largest probability.

It is executed, so that nothing is computed for a token that left, or counted as the report counted it:
every layer computed for every token, and the saving a formula over layers.

What the largest probability is worth stands between a floor and two ceilings at the same share of exits:
random exits, as an expectation over draws; the divergence oracle, which knows KL(full depth || exit) of every
token, so what no signal can do better than where full depth is calibrated; and the gain oracle, which knows
the next token.

Shapes: B windows, T tokens of a window, N = B T tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from offramp.exits.ranking import most_confident
from offramp.models.native import BlockwiseLM
from offramp.routing.cost import executed_flops, full_depth_flops, layer_saving
from offramp.routing.executor import Executor, Work
from offramp.routing.policies import FixedExit, GivenExits
from offramp.systems.confidence_routing import MaxProbPolicy, with_exits
from studies.common.characters import WINDOW
from studies.common.layer_statistics import LayerStatistics
from studies.common.layered_models import LayeredModels, build
from studies.common.tables import Values

Windows = tuple[Tensor, Tensor]
"""Inputs and targets, each (B, T)."""
TOGETHER = 64
"""Windows in one pass: more leave the cache, and take half as long again."""
NOBODY = 2.0
"""A threshold that no probability reaches."""
DRAWS, DRAWN_WINDOWS = 20, 160
"""Executed draws of random exits, and in how many windows at most."""


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


def expected_loss(shallow: np.ndarray, deep: np.ndarray, share: float) -> float:
    """Mean NLL of random exits in expectation: every token leaves with probability ``share``; losses (N,)."""
    return float(share * shallow.mean(dtype=np.float64) + (1 - share) * deep.mean(dtype=np.float64))


def random_exits_nll(
    model: BlockwiseLM, exit_after: int, windows: Windows, statistics: LayerStatistics, share: float
) -> float:
    """Expected NLL where a ``share`` of the tokens leaves at random after layer ``exit_after``, executed.

    The expectation of what the exits say as if nobody else had left is closed form. What others' leaving adds
    to it, through the keys and values of those that left, is a mean over ``DRAWS`` executed draws, in evenly
    spaced windows.
    """
    shallow, deep = statistics.loss[exit_after - 1], statistics.loss[-1]
    chosen = slice(None, None, -(-len(windows[0]) // DRAWN_WINDOWS))
    drawn = windows[0][chosen], windows[1][chosen]
    early, late = (loss.reshape(windows[0].shape)[chosen].flatten() for loss in (shallow, deep))
    random, added = np.random.default_rng(0), []
    for _ in range(DRAWS):
        leaves = np.zeros(len(late), bool)
        leaves[random.permutation(len(late))[: round(share * len(late))]] = True
        as_if_alone = np.where(leaves, early, late).mean(dtype=np.float64)
        added.append(execute(model, exit_after, drawn, leaves=leaves).nll - as_if_alone)
    return expected_loss(shallow, deep, share) + float(np.mean(added))


def signal_values(statistics: LayerStatistics, exit_after: int, shares: Mapping[str, float]) -> Values:
    """What the largest probability is worth where ``shares`` of the tokens leave after layer ``exit_after``.

    By name of the share, from losses as if nobody else had left: nats by which it, the divergence oracle and
    the gain oracle are ahead of random exits, and its part of what each oracle is ahead (``attained``,
    ``headroom``; None where the oracle is not ahead, as on text that full depth is badly calibrated for).
    """
    exit = exit_after - 1
    out: Values = {}
    shallow, deep = (statistics.loss[layer].astype(np.float64) for layer in (exit, -1))
    scores = {
        "signal": statistics.max_prob[exit],
        "divergence_oracle": -statistics.divergence[exit],
        "gain_oracle": deep - shallow,
    }
    for name, share in shares.items():
        count = round(share * len(deep))
        random = expected_loss(shallow, deep, count / len(deep))
        ahead = {
            way: random - float(np.where(most_confident(score, count), shallow, deep).mean())
            for way, score in scores.items()
        }
        out |= {f"ahead.{way}.{name}": nats for way, nats in ahead.items()}
        for part, oracle in (("attained", "divergence_oracle"), ("headroom", "gain_oracle")):
            out[f"{part}.{name}"] = ahead["signal"] / ahead[oracle] if ahead[oracle] > 0 else None
    return out


def path_values(statistics: LayerStatistics, exit_after: int) -> dict[str, float]:
    """Whether each exit is better on the tokens that confidence sends there: nats, over halves of the tokens.

    The surer half by confidence after layer ``exit_after`` is the shallow exit's, the other the deep one's: a
    half, so that it is defined where hardly any token reaches a threshold. ``specialisation`` is how much
    more the deep exit is ahead on its half than on the other.
    """
    exit = exit_after - 1
    confidence, deep = statistics.max_prob[exit], statistics.loss[-1].astype(np.float64)
    surer = most_confident(confidence, len(deep) // 2)
    behind = statistics.loss[exit] - deep
    out = {
        "paths.shallow_minus_deep": behind[surer].mean(),
        "paths.deep_minus_shallow": -behind[~surer].mean(),
        "paths.specialisation": behind[~surer].mean() - behind[surer].mean(),
        "difficulty.gap": deep[~surer].mean() - deep[surer].mean(),
        "difficulty.r": np.corrcoef(confidence, deep)[0, 1],
    }
    return {key: float(value) for key, value in out.items()}


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
