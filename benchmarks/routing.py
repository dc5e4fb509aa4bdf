"""Routed scoring against the plain forward pass, and wall clock against floating-point operations saved."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.inputs import COMPUTE_BOUND, RandomWindows, compute_bound_model
from benchmarks.measure import Median, Row, in_turn, median_ratio
from offramp.models.blockwise import Blockwise
from offramp.routing.cost import executed_flops, full_depth_flops
from offramp.routing.executor import Executor, Work
from offramp.routing.policies import GivenExits
from offramp.states.statistics import Readout, predictions

SHARES, PAIRS = (0.0, 0.5, 0.7, 0.9), 13
"""The bar is on a small difference of two times: many pairs."""
FREE_SHARES = (0.3,)
"""Those without a bar."""
WINDOWS = 32
"""In a batch, as in params.yaml (``routing.batch_size``)."""
FEW, FEW_SHARES, FEW_PAIRS = 16, (0.5, 0.7, 0.9), 7
"""A smaller batch, of which a half and a quarter no longer fill matrix products that run at full speed."""


def run() -> Iterator[Row]:
    lm = compute_bound_model()
    yield from rows(lm, WINDOWS, SHARES, PAIRS, ">= 0.85")
    yield from rows(lm, WINDOWS, FREE_SHARES, FEW_PAIRS, None)
    yield from rows(lm, FEW, FEW_SHARES, FEW_PAIRS, None, f"_{FEW}_windows")


def rows(
    lm: Blockwise, windows: int, shares: Sequence[float], pairs: int, bar: str | None, suffix: str = ""
) -> Iterator[Row]:
    """One row per share of tokens that leave a model with three exits; ``bar`` is for shares above 0."""
    tokens, targets = RandomWindows(windows, 128, 8192).batch(torch.arange(windows))
    size = f"{COMPUTE_BOUND}, {windows} windows of 128"
    executor, last = Executor(lm), Readout(lm.readout_matrix(2))

    @torch.no_grad()
    def plain() -> None:
        predictions(lm.readout_input(2, lm(tokens)[-1].flatten(0, 1)), last, targets.flatten())

    for share in shares:
        policy, work = GivenExits(random_exits(tokens.numel(), share)), Work()
        executor.run(tokens, targets, policy, work)
        routed, full = in_turn(partial(executor.run, tokens, targets, policy), plain, pairs)
        if share == 0:
            yield Row(
                f"routed_nothing_exits{suffix}",
                median_ratio(full, routed),
                "x speed",
                ">= 0.97",
                f"blocks and last readout, no exits, {size}",
            )
            continue
        flop_saving = 1 - executed_flops(lm, work) / full_depth_flops(lm, tokens.numel(), tokens.shape[1])
        saved = [1 - seconds / whole for seconds, whole in zip(routed, full)]
        yield Row(
            f"routed_{100 * share:.0f}_exit{suffix}",
            Median.of(part / flop_saving for part in saved),
            "wall / flop saving",
            bar,
            f"flop_saving {flop_saving:.3f}, wall_saving {statistics.median(saved):.3f} when "
            f"{share:.0%} leave at random, half at each of 2 exits, {size}",
        )


def random_exits(tokens: int, share: float) -> Tensor:
    """Exits (tokens,): ``share`` of them leave, half after each of the first two blocks."""
    draw = torch.rand(tokens, generator=torch.Generator().manual_seed(0))
    return torch.where(draw < share / 2, 0, torch.where(draw < share, 1, 2))
