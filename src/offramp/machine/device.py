"""Device, threads, seeds and mixed precision: what a run needs from the machine."""

from __future__ import annotations

import contextlib
import ctypes
import platform
import random
import re

import numpy as np
import torch

from offramp.errors import UserError
from offramp.machine.versions import set_device

NAME = re.compile(r"\w+(:\d{1,4})?", re.ASCII)
"""A kind of device, perhaps with the number of one."""


def setup(device: str, threads: int, spare_memory: bool = False) -> torch.device:
    """Choose the device, set the number of CPU threads and demand deterministic kernels.

    ``auto`` takes CUDA, then MPS, then the CPU. Results are bitwise repeatable for equal device and threads.
    For ``spare_memory`` see ``settle_freed_memory``. UserError where the device is not available.
    """
    torch.set_num_threads(threads)
    settle_freed_memory(spare_memory)
    # the same as use_deterministic_algorithms(), which imports the compiler
    torch.set_deterministic_debug_mode("warn")
    # no code of this project reads memory that it has not written
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a property
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        device = next(name for name in ("cuda", "mps", "cpu") if available[name])
    if not available.get(device.split(":")[0], False):
        names = ", ".join(name for name, is_available in available.items() if is_available)
        raise UserError(
            f"runtime.device = {device!r} is not available here; found: {names}. Use one of them, or auto"
        )
    chosen = torch.device(device) if NAME.fullmatch(device) else None
    count = torch.cuda.device_count() if device.startswith("cuda") else 1
    if chosen is None or (chosen.index or 0) >= count:
        raise UserError(
            f"runtime.device = {device!r}: there is no such one among the {count} of its kind, which are "
            f"counted from 0; use {device.partition(':')[0]}"
        )
    set_device(_in_words(chosen))
    return chosen


def _in_words(device: torch.device) -> str:
    return f"{device.type} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type


def settle_freed_memory(spare: bool) -> None:
    """Make glibc keep the memory of freed tensors, or (``spare``) return it to the system at once.

    Memory that was returned is faulted in again, page by page, which is about 40 % of a small model's forward
    pass on a CPU. But what is kept is free in pieces, and where those are too small for the next tensor, the
    peak grows. Without glibc nothing is done.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(mmap_threshold, 2**18 if spare else 2**25)  # 32 MiB is the most that it takes


def seed_all(seed: int) -> None:
    """Seed the random number generators of Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def require_precision(device: torch.device, precision: str, parameter: str) -> None:
    """UserError, naming the ``parameter``, where the device has no arithmetic of that precision.

    CUDA GPUs before Ampere and Macs before macOS 14 have no bf16; every device has fp32.
    """
    has_bf16 = {
        "cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
        "mps": lambda: torch.backends.mps.is_available() and torch.backends.mps.is_macos_or_newer(14, 0),
    }.get(device.type, lambda: True)
    if precision == "bf16" and not has_bf16():
        raise UserError(
            f"{parameter} = 'bf16': the device {device.type} has no bf16 here; set {parameter}: fp32"
        )


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """A context in which the device computes in the precision: under torch's autocast for bf16."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
