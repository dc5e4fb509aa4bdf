"""Routed scoring against the plain forward pass, and wall clock against floating-point operations saved."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.inputs import RandomWindows, model
from benchmarks.measure import Row, in_turn, median_ratio
from offramp.routing.cost import executed_flops, full_depth_flops
from offramp.routing.executor import Executor, Work
from offramp.routing.policies import GivenExits
from offramp.states.statistics import Readout, predictions

PAIRS = 25


def run() -> Iterator[Row]:
    lm = model(8192, 128, 512, 8, 1408, (4, 4, 4))
    executor, last = Executor(lm), Readout(lm.readout_matrix(2))
    tokens, targets = RandomWindows(4, 128, 8192).batch(torch.arange(4))
    size = "width 512, 12 layers in 3 blocks, vocabulary 8192, 4 windows of 128"

    @torch.no_grad()
    def plain() -> None:
        predictions(lm.readout_input(2, lm(tokens)[-1].flatten(0, 1)), last, targets.flatten())

    for share in (0.0, 0.5, 0.7, 0.9):
        policy, work = GivenExits(random_exits(tokens.numel(), share)), Work()
        executor.run(tokens, targets, policy, work)
        routed, full = in_turn(lambda: executor.run(tokens, targets, policy), plain, PAIRS)  # noqa: B023
        ratio = median_ratio(routed, full)
        if share == 0:
            yield Row("routed_nothing_exits", 1 / ratio, "x speed", ">= 0.97", f"blocks and last readout, no exits, {size}", PAIRS)
            continue
        flop_saving = 1 - executed_flops(lm, work) / full_depth_flops(lm, tokens.numel(), 128)
        yield Row(f"routed_{share:.0%}_exit".replace("%", ""), (1 - ratio) / flop_saving, "wall / flop saving", ">= 0.85",
                  f"flop_saving {flop_saving:.3f} when {share:.0%} leave at random, half at each of 2 exits, {size}", PAIRS)


def random_exits(tokens: int, share: float) -> Tensor:
    """Exits (tokens,): ``share`` of them leave, half after each of the first two blocks."""
    draw = torch.rand(tokens, generator=torch.Generator().manual_seed(0))
    return torch.where(draw < share / 2, 0, torch.where(draw < share, 1, 2))
