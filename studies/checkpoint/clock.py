"""By the clock: routed scoring and decoding against another model's full depth, and self-speculation.

Both models run the same text in turn, changing who begins. Nothing is counted before each has run once.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offramp.models.blockwise import Blockwise
from offramp.routing.executor import Executor, Policy, Routed
from offramp.routing.generate import decode, generate, speculate
from offramp.routing.speculation import Speculation
from offramp.states.resampling import interval
from studies.checkpoint.results import Clocked, Drafted

FEWEST, DRAWS = 5, 2000
"""Pairs from which on an interval is given, and its bootstrap draws."""
TRIALS = 3
"""Prompts on which an exit is chosen to draft."""

Prompt = Sequence[int]


def described(device: torch.device) -> str:
    """What this runs on: system, processor or accelerator, cores, threads, version of torch, load."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    if device.type == "cuda":
        name = f"{torch.cuda.get_device_name(device)}, {name}"
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{platform.system()} {platform.machine()}, {name} ({torch.backends.cpu.get_cpu_capability()}), "
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}{load}"
    )


def in_turn(pairs: Sequence[tuple[Callable[[], Any], Callable[[], Any]]], device: torch.device) -> np.ndarray:
    """Seconds (pairs, 2) of pairs of works."""
    times = np.empty((len(pairs), 2))
    for number, pair in enumerate(pairs):
        for which in (0, 1) if number % 2 else (1, 0):
            times[number, which] = seconds(pair[which], device)
    return times


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """Seconds that a work takes."""
    _wait_for(device)
    begun = time.perf_counter()
    work()
    _wait_for(device)
    return time.perf_counter() - begun


def median(ratios: np.ndarray) -> tuple[float, list[float] | None]:
    """The median of paired ratios with its 95 % bootstrap interval; None for few of them."""
    draws = np.median(np.random.default_rng(0).choice(ratios, (DRAWS, len(ratios))), axis=1)
    return float(np.median(ratios)), interval(draws) if len(ratios) >= FEWEST else None


def clocked(times: np.ndarray, shallow_ratio: float) -> Clocked:
    """``times`` (pairs, 2) of reference and arm."""
    speed, bounds = median(times[:, 0] / times[:, 1])
    return Clocked(
        speed=speed,
        interval=bounds,
        pairs=len(times),
        seconds=float(np.median(times[:, 0])),
        shallow_ratio=shallow_ratio,
    )


def scoring(
    control: Executor, arm: Executor, policy: Policy, batches: Sequence[tuple[Tensor, Tensor]]
) -> Clocked:
    """Routed passes of an arm against plain ones of the control; batches are tokens and targets (B, T)."""
    control.run(*batches[0], None), arm.run(*batches[0], policy)
    routed: list[Routed] = []
    pairs = [
        (
            partial(control.run, *batch, None),
            lambda batch=batch: routed.append(arm.run(*batch, policy)),  # type: ignore[misc]
        )
        for batch in batches
    ]
    times = in_turn(pairs, arm.device)
    last = arm.model.config.num_blocks - 1
    return clocked(times, float(torch.cat([part.exit.flatten() for part in routed]).lt(last).float().mean()))


def decoding(
    control: Blockwise, arm: Blockwise, policy: Policy, prompts: Sequence[Prompt], new: int, kv: str
) -> Clocked:
    """Greedy decoding at batch 1 with early exit against the control's at full depth, prompts included."""
    exits: list[int] = []

    def routed(prompt: Prompt) -> None:
        (made,) = generate(decode(arm, [prompt], new, policy, kv=kv), 1)
        exits.extend(made.exits)

    def plain(prompt: Prompt) -> None:
        list(decode(control, [prompt], new))

    plain(prompts[0]), routed(prompts[0])
    exits.clear()
    times = in_turn([(partial(plain, prompt), partial(routed, prompt)) for prompt in prompts], arm.cos.device)
    return clocked(times, float(np.mean(np.array(exits) < arm.config.num_blocks - 1)))


def drafting(
    arm: Blockwise,
    trial: Sequence[Prompt],
    prompts: Sequence[Prompt],
    new: int,
    length: int,
    vocabulary: Tensor,
) -> Drafted:
    """Self-speculation against plain decoding of the arm.

    Exit and length are chosen as it goes. One ``Speculation`` is kept over all prompts, as a program would
    that goes on; it has made up its mind on ``trial``, which is not timed. Drafts are from ``vocabulary``.
    """
    kept = Speculation(None, length, vocabulary=vocabulary)
    for prompt in trial:
        _drafted(arm, prompt, new, kept)
    before = {exit: (of.drafted, of.accepted, len(of.cycle_seconds)) for exit, of in kept.by_exit.items()}
    plain, drafted = [], []

    def run_plain(prompt: Prompt) -> None:
        plain.append((tuple(prompt), generate(decode(arm, [prompt], new), 1)[0].tokens))

    def run_drafted(prompt: Prompt) -> None:
        drafted.append((tuple(prompt), _drafted(arm, prompt, new, kept)))

    pairs = [(partial(run_plain, prompt), partial(run_drafted, prompt)) for prompt in prompts]
    times = in_turn(pairs, arm.cos.device)
    speed, bounds = median(times[:, 0] / times[:, 1])
    cycles = {exit: len(of.cycle_seconds) - before[exit][2] for exit, of in kept.by_exit.items()}
    most = max(cycles, key=lambda exit: cycles[exit])
    return Drafted(
        exit=most,
        layers=sum(arm.config.block_layers[: most + 1]),
        length=kept.by_exit[most].best_length,
        vocabulary=len(vocabulary),
        speed=speed,
        interval=bounds,
        pairs=len(times),
        accepted=kept.accepted - sum(accepted for _, accepted, _ in before.values()),
        drafted=kept.drafted - sum(count for count, _, _ in before.values()),
        pays=kept.pays,
        same=plain == drafted,
    )


def _drafted(arm: Blockwise, prompt: Prompt, new: int, kept: Speculation) -> list[int]:
    return generate(speculate(arm, [prompt], new, kept), 1)[0].tokens


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()
