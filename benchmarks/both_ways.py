"""Text scored at full depth and routed, batch by batch in turn: what a policy loses and what it spares.

A batch is timed once each way, so timings are as many as there are batches of different text.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.measure import DRAWS, Estimate, Median, seconds
from offramp.corpus.windows import TokenWindows
from offramp.routing.cost import executed_flops, full_depth_flops
from offramp.routing.executor import Executor, Policy, Routed, Work
from offramp.states.resampling import GroupSums, group_draws

COLUMNS = ("exit", "loss", "argmax")


@dataclass(frozen=True)
class BothWays:
    """What both passes over the same windows came to; B batches, N tokens."""

    seconds_ratio: np.ndarray
    """Routed over full depth (B,), of whole batches only."""
    flops: np.ndarray
    """Executed and those of full depth, (2, B')."""
    loss: np.ndarray
    """Routed and at full depth, in nats, (2, N)."""
    agrees: np.ndarray
    """Whether the prediction is that of full depth (N,)."""
    leaves: np.ndarray
    """Whether a token leaves before the last exit (N,)."""
    document: np.ndarray
    """Of each token (N,)."""

    @property
    def speed(self) -> Estimate:
        """How many times as fast the routed pass is, the median over batches."""
        return Median.of(1 / self.seconds_ratio)

    @property
    def wall_saving(self) -> Estimate:
        """Share of the seconds saved, the median over batches."""
        return Median.of(1 - self.seconds_ratio)

    @property
    def wall_over_flop_saving(self) -> Estimate:
        """Share of the seconds saved over the share of the FLOPs saved in all batches together.

        ZeroDivisionError where no FLOPs are saved.
        """
        flop_saving = float(self.flop_saving)
        return Median.of(saved / flop_saving for saved in (1 - self.seconds_ratio).tolist())

    @property
    def flop_saving(self) -> Estimate:
        """Share of the FLOPs saved; the interval resamples batches."""
        executed, full = self.flops @ group_draws(self.flops.shape[1], DRAWS, 0).T
        saving = 1 - self.flops[0].sum() / self.flops[1].sum()
        return Estimate.drawn(saving, 1 - executed / full, self.flops.shape[1])

    @property
    def ppl_increase(self) -> Estimate:
        """Rise in perplexity, as a share of it; the interval resamples documents, paired."""
        rise = self.loss[0].astype(np.float64) - self.loss[1]
        sums = GroupSums(self.document, {"rise": rise})
        draws = np.expm1(sums.resample(DRAWS, 0)["rise"])
        return Estimate.drawn(float(np.expm1(rise.mean())), draws, len(sums.tokens))


def both_ways(executor: Executor, windows: TokenWindows, policy: Policy, batch_size: int) -> BothWays:
    """Run all windows at full depth and under ``policy``, changing from batch to batch which comes first."""
    model, last = executor.model, executor.model.config.num_blocks - 1
    parts = torch.arange(len(windows)).split(batch_size)
    warm = windows.batch(parts[0])
    executor.run(*warm, None), executor.run(*warm, policy)
    ratios, flops, passes = [], [], []
    for number, part in enumerate(tqdm(parts, desc="both ways", unit="batch", disable=None, leave=False)):
        batch, work = windows.batch(part), Work()
        arms = partial(executor.run, *batch, policy, work), partial(executor.run, *batch, None)
        results: dict[int, Routed] = {}
        times: dict[int, float] = {}
        for arm in (0, 1) if number % 2 else (1, 0):
            times[arm] = seconds(lambda: results.update({arm: arms[arm]()}))  # noqa: B023
        if len(part) == batch_size:
            ratios.append(times[0] / times[1])
        whole = full_depth_flops(model, batch[0].numel(), windows.window)
        flops.append((executed_flops(model, work, policy.flops_per_token), whole))
        passes.append(results)
    tokens = {
        arm: [torch.cat([getattr(of[arm], name).flatten() for of in passes]).numpy() for name in COLUMNS]
        for arm in (0, 1)
    }
    (exit, loss, argmax), (_, full_loss, full_argmax) = tokens[0], tokens[1]
    return BothWays(
        seconds_ratio=np.array(ratios),
        flops=np.array(flops, dtype=np.float64).T,
        loss=np.stack([loss, full_loss]),
        agrees=argmax == full_argmax,
        leaves=exit < last,
        document=windows.documents(torch.cat(parts)).ravel(),
    )
