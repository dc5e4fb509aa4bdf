"""Seconds of routing beside those of full depth, on the same batches in turn."""

from __future__ import annotations

import math
import platform
import statistics
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from offramp.corpus.windows import TokenWindows
from offramp.params import Routing as RoutingParams
from offramp.results.routing import Origin, Timing
from offramp.results.shape import Interval
from offramp.routing.executor import Executor, Policy
from offramp.routing.policies import GivenExits
from offramp.routing.split import spread_windows


def time_routing(
    executor: Executor,
    windows: TokenWindows,
    policy: Policy,
    exits: np.ndarray,
    settings: RoutingParams,
    origin: Origin,
) -> Timing:
    """Seconds of the same batches in turn: plain full depth, routed, and the two halves of routing apart.

    exits (all tokens,) are those that ``policy`` takes. ``wall_saving``: 1 - routed / plain.
    ``skipping_saving``: the same with the exits laid down, so that nothing is asked; what asking costs is the
    difference. Medians of pairwise ratios, with the interval of ``median_interval``. ``origin`` says when
    and where it was measured.
    """
    rows = spread_windows(len(windows), settings.timing_batches * settings.batch_size)
    exits_of_window = torch.from_numpy(exits).view(-1, windows.window)
    seconds: dict[str, list[float]] = {"plain": [], "routed": [], "skipping": []}
    for number, batch in enumerate(rows.split(settings.batch_size)):
        tokens, targets = (part.to(executor.device) for part in windows.batch(batch))
        policies = {
            "plain": None,
            "routed": policy,
            "skipping": GivenExits(exits_of_window[batch].flatten().to(executor.device)),
        }
        if not number:
            # warm up; all but the plain pass on one sequence: memory that is set up once does not grow with
            # the batch
            executor.run(tokens, targets, None)
            for warmed in policies.values():
                executor.run(tokens[:1], targets[:1], warmed)
        turn = number % len(seconds)
        for name in (*list(seconds)[turn:], *list(seconds)[:turn]):
            seconds[name].append(pass_seconds(executor, (tokens, targets), policies[name]))
    ratios = {
        name: [second / plain for second, plain in zip(times, seconds["plain"])]
        for name, times in seconds.items()
    }
    count, plain, routed = len(rows) * windows.window, sum(seconds["plain"]), sum(seconds["routed"])
    return Timing(
        wall_saving=1 - statistics.median(ratios["routed"]),
        wall_saving_interval=median_interval([1 - ratio for ratio in ratios["routed"]]),
        skipping_saving=1 - statistics.median(ratios["skipping"]),
        full_seconds=plain,
        routed_seconds=routed,
        full_tokens_per_second=count / plain,
        routed_tokens_per_second=count / routed,
        pairs=len(seconds["plain"]),
        machine=machine(executor.device),
        origin=origin,
    )


def median_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """The r-th least and the r-th largest of n ``values``: the narrowest such pair that holds the median of
    what they were drawn from with probability ``level`` at least, whatever its distribution (sign test).

    Fewer than six values cannot promise 95 %; theirs are the least and the largest.
    """
    ordered, rank, outside = sorted(values), 0, 0.0
    while rank < len(ordered) and outside <= (1 - level) / 2:
        outside += math.comb(len(ordered), rank) / 2 ** len(ordered)
        rank += 1
    rank = max(rank - 1, 1)
    return [ordered[rank - 1], ordered[-rank]]


def pass_seconds(executor: Executor, batch: tuple[Tensor, Tensor], policy: Policy | None) -> float:
    """Seconds of one pass over a batch, tokens and targets (B, T), that is on its device."""
    _wait_for(batch[0].device)
    start = time.perf_counter()
    executor.run(*batch, policy)
    _wait_for(batch[0].device)
    return time.perf_counter() - start


def machine(device: torch.device) -> str:
    """A short name of what a timing was taken on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()
