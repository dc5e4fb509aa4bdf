"""What it costs that later tokens do not see true keys and values of tokens that left, whoever chose them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from offramp.models.blockwise import Blockwise
from offramp.results.suitability import KeptFirst, NllRise, StatePropagation
from offramp.routing.executor import Executor
from offramp.routing.policies import GivenExits
from offramp.states.resampling import GroupSums, interval

LEAVING = 0.5
"""Share of the tokens that leave, as many at every early exit."""
KEPT = (0, 1)
"""First positions of a sequence that stay in."""


def propagation_cost(
    model: Blockwise, batches: Sequence[tuple[Tensor, Tensor]], draws: int, precision: str = "fp32"
) -> StatePropagation:
    """Rise in NLL per token when random tokens leave, by ``routing.kv`` and ``routing.keep_first``.

    ``recompute`` shows later tokens the true keys and values, so it is what the others are held against, with
    the same tokens leaving. Over all tokens of the batches (tokens and targets (B, T)); intervals from
    ``draws`` resamples of windows.
    """
    generator = torch.Generator().manual_seed(0)
    last = model.config.num_blocks - 1
    drawn = [torch.rand(tokens.shape, generator=generator) for tokens, _ in batches]
    after_first = [Executor(model, precision=precision).first_block(tokens) for tokens, _ in batches]

    def losses(kv: str, kept: int) -> np.ndarray:
        """Mean loss of every window, (windows,)."""
        executor, of_batches = Executor(model, kv, precision), []
        for (tokens, targets), draw, first in zip(batches, drawn, after_first):
            exits = torch.where(draw < LEAVING, (draw / LEAVING * last).long(), last)
            exits[:, :kept] = last
            policy = GivenExits(exits.flatten().to(tokens.device))
            routed = executor.run(tokens, targets, policy, after_first=first)
            of_batches.append(routed.loss.mean(1).cpu())
        return torch.cat(of_batches).numpy()

    passes = [(kv, kept) for kv in ("recompute", "propagate", "drop") for kept in KEPT]
    bar = tqdm(passes, desc="let tokens leave", unit="pass", disable=None, leave=False)
    of = {(kv, kept): losses(kv, kept) for kv, kept in bar}

    def rises(kv: str) -> KeptFirst:
        all_leave, first_stays = (_rise(of[kv, kept] - of["recompute", kept], draws) for kept in KEPT)
        return KeptFirst(keep_first_0=all_leave, keep_first_1=first_stays)

    return StatePropagation(propagate=rises("propagate"), drop=rises("drop"))


def _rise(rise: np.ndarray, draws: int) -> NllRise:
    resampled = GroupSums(np.arange(len(rise)), {"rise": rise}).resample(draws, 0)["rise"]
    return NllRise(nll_rise=float(rise.mean(dtype=np.float64)), interval=interval(resampled))
