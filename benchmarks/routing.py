"""Routed scoring against the plain forward pass, and wall clock against floating-point operations saved."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.inputs import COMPUTE_BOUND, RandomWindows, compute_bound_model
from benchmarks.measure import Row, in_turn, median_ratio
from offramp.models.blockwise import Blockwise
from offramp.routing.cost import executed_flops, full_depth_flops
from offramp.routing.executor import Executor, Work
from offramp.routing.policies import GivenExits
from offramp.states.statistics import Readout, predictions

SHARES, PAIRS = (0.0, 0.3, 0.5, 0.7, 0.9), 9
WIDE, WIDE_PAIRS = 1024, 5
"""A model of four times the work per token, which has less else to do."""
WINDOWS = 16
"""In a batch: a half and a quarter of them must still fill matrix products that run at full speed."""


def run() -> Iterator[Row]:
    batch = RandomWindows(WINDOWS, 128, 8192).batch(torch.arange(WINDOWS))
    yield from rows(compute_bound_model(), *batch, f"{COMPUTE_BOUND}, {WINDOWS} windows of 128", PAIRS)
    size = COMPUTE_BOUND.replace("512", str(WIDE))
    yield from rows(compute_bound_model(WIDE), *batch, f"{size}, {WINDOWS} windows of 128", WIDE_PAIRS, f"_{WIDE}")


def rows(lm: Blockwise, tokens: Tensor, targets: Tensor, size: str, pairs: int, suffix: str = "") -> Iterator[Row]:
    """Of a model with three exits, scoring tokens (B, T); ``size`` says in words what these are, ``suffix`` in the rows' names."""
    executor, last = Executor(lm), Readout(lm.readout_matrix(2))

    @torch.no_grad()
    def plain() -> None:
        predictions(lm.readout_input(2, lm(tokens)[-1].flatten(0, 1)), last, targets.flatten())

    for share in SHARES:
        policy, work = GivenExits(random_exits(tokens.numel(), share)), Work()
        executor.run(tokens, targets, policy, work)
        routed, full = in_turn(lambda: executor.run(tokens, targets, policy), plain, pairs)  # noqa: B023
        ratio = median_ratio(routed, full)
        if share == 0:
            yield Row(f"routed_nothing_exits{suffix}", 1 / ratio, "x speed", ">= 0.97", f"blocks and last readout, no exits, {size}", pairs)
            continue
        flop_saving = 1 - executed_flops(lm, work) / full_depth_flops(lm, tokens.numel(), tokens.shape[1])
        yield Row(f"routed_{100 * share:.0f}_exit{suffix}", (1 - ratio) / flop_saving, "wall / flop saving",
                  ">= 0.85" if share >= 0.5 else None, f"flop_saving {flop_saving:.3f}, wall_saving {1 - ratio:.3f} when "
                  f"{share:.0%} leave at random, half at each of 2 exits, {size}", pairs)


def random_exits(tokens: int, share: float) -> Tensor:
    """Exits (tokens,): ``share`` of them leave, half after each of the first two blocks."""
    draw = torch.rand(tokens, generator=torch.Generator().manual_seed(0))
    return torch.where(draw < share / 2, 0, torch.where(draw < share, 1, 2))
