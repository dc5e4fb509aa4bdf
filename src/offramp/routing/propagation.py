"""What it costs that later tokens do not see the true keys and values of tokens that left, measured before any signal is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offramp.models.blockwise import Blockwise
from offramp.routing.executor import Executor
from offramp.routing.policies import GivenExits
from offramp.states.resampling import DocumentSums, interval

LEAVING = 0.5
"""Share of the tokens that leave, as many at every early exit."""
KEPT = (0, 1)
"""First positions of a sequence that stay in."""


def propagation_cost(
    model: Blockwise, batches: Sequence[tuple[Tensor, Tensor]], draws: int, precision: str = "fp32"
) -> dict[str, dict[str, Any]]:
    """Rise in NLL per token when random tokens leave, by ``routing.kv`` and ``routing.keep_first``.

    ``recompute`` shows later tokens the true keys and values, so it is what the others are held against, with the same tokens
    leaving. Each is {nll_rise, interval}, over tokens of the batches (tokens and targets (B, T)); intervals from ``draws`` of windows.
    """
    generator = torch.Generator().manual_seed(0)
    last = model.config.num_blocks - 1
    drawn = [torch.rand(tokens.shape, generator=generator) for tokens, _ in batches]

    def losses(kv: str, kept: int) -> np.ndarray:
        executor, found = Executor(model, kv, precision), []
        for (tokens, targets), draw in zip(batches, drawn):
            exits = torch.where(draw < LEAVING, (draw / LEAVING * last).long(), last)
            exits[:, :kept] = last
            found.append(
                executor.run(tokens, targets, GivenExits(exits.flatten().to(tokens.device)))
                .loss.mean(1)
                .cpu()
            )
        return torch.cat(found).numpy()

    rises = {kv: {kept: losses(kv, kept) for kept in KEPT} for kv in ("recompute", "propagate", "drop")}
    true = rises.pop("recompute")
    out: dict[str, dict[str, Any]] = {}
    for kv, by_kept in rises.items():
        for kept, loss in by_kept.items():
            rise = loss - true[kept]
            resampled = DocumentSums(np.arange(len(rise)), {"rise": rise}).resample(draws, 0)["rise"]
            out.setdefault(kv, {})[f"keep_first_{kept}"] = {
                "nll_rise": float(rise.mean(dtype=np.float64)),
                "interval": interval(resampled),
            }
    return out
