"""Device, threads, seeds and mixed precision: what a run needs from the machine."""

from __future__ import annotations

import contextlib
import ctypes
import platform
import random

import numpy as np
import torch

from offramp.errors import UserError


def setup(device: str, threads: int, spare_memory: bool = False) -> torch.device:
    """Choose the device, pin the CPU threads and demand deterministic kernels.

    ``auto`` takes CUDA, then MPS, then the CPU. Results are bitwise repeatable for equal device and threads; for
    ``spare_memory`` see ``settle_freed_memory``.
    """
    torch.set_num_threads(threads)
    settle_freed_memory(spare_memory)
    torch.set_deterministic_debug_mode(
        "warn"
    )  # the same as use_deterministic_algorithms(), which imports the compiler
    torch.utils.deterministic.fill_uninitialized_memory = (
        False  # nothing here reads memory it has not written
    )
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        device = next(name for name in ("cuda", "mps", "cpu") if available[name])
    if not available.get(device.split(":")[0], False):
        found = ", ".join(name for name, there in available.items() if there)
        raise UserError(
            f"runtime.device = {device!r} is not available here; found: {found}. Use one of them, or auto"
        )
    return torch.device(device)


def settle_freed_memory(spare: bool) -> None:
    """Whether glibc returns freed tensors to the kernel at once, or keeps them instead of faulting memory in for every new one.

    Of a forward pass of small models on a CPU those page faults are about 40 % of the time. But what is kept is free in pieces,
    and where those are too small for what comes next, the peak grows.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    trim_threshold, mmap_threshold = (
        -1,
        -3,
    )  # M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h; 32 MiB is the most it takes
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(mmap_threshold, 2**18 if spare else 2**25)


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def require_precision(device: torch.device, precision: str, parameter: str) -> None:
    """UserError, naming ``parameter``, where ``device`` has no bf16 arithmetic: CUDA GPUs before Ampere, Macs before macOS 14."""
    has_bf16 = {
        "cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
        "mps": lambda: torch.backends.mps.is_available() and torch.backends.mps.is_macos_or_newer(14, 0),
    }.get(device.type, lambda: True)
    if precision == "bf16" and not has_bf16():
        raise UserError(
            f"{parameter} = 'bf16': the device {device.type} has no bf16 here; set {parameter}: fp32"
        )


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """bf16 autocast where asked for; fp32 otherwise."""
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else contextlib.nullcontext()
