"""What work on a GPU costs beside arithmetic: kernels launched, and times that the CPU waited for it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

MESSAGE = "called a synchronizing CUDA operation"


@dataclass(frozen=True)
class Launches:
    """Of one piece of work."""

    kernels: int
    """And copies and fillings of memory."""
    waits: int
    """Operations for which the CPU had to wait until the device had done everything before."""


def launches(work: Callable[[], object]) -> Launches:
    """What ``work`` launches on the CUDA device, and how often it waits for it; run twice, once for each."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as seen:
        work()
        torch.cuda.synchronize()
    on_device = [event for event in seen.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            work()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return Launches(len(on_device), sum(MESSAGE in str(warning.message) for warning in said))
