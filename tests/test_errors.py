"""Running out of memory is told apart from other failures, with what to lower."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest
import torch

from offramp.errors import UserError, memory_for
from tests.conftest import REPOSITORY


def test_an_allocation_that_cannot_be_had_names_what_to_lower():
    message = r"stage collect ran out of memory \(.*allocate memory.*\); lower collect\.batch_size"
    with pytest.raises(UserError, match=message), memory_for("stage collect", "collect.batch_size"):
        torch.empty(2**48)
    with pytest.raises(UserError, match="ran out of memory"), memory_for("offramp", "--tokens"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    with (
        pytest.raises(UserError, match="ran out of memory"),
        memory_for("stage collect", "collect.batch_size"),
    ):
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))  # of a file that cannot be mapped


def test_other_failures_are_left_as_they_are():
    with (
        pytest.raises(RuntimeError, match="mat1 and mat2"),
        memory_for("stage collect", "collect.batch_size"),
    ):
        torch.zeros(2, 3) @ torch.zeros(2, 3)


@pytest.mark.slow
def test_a_stage_in_too_little_memory_ends_with_one_line():
    """A real process under a limit of address space, as a cluster's scheduler sets it."""
    script = (
        "import resource, torch\n"
        "from pipeline import _stage\n"
        "_stage.load_params = lambda *_: None\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**28,) * 2)\n"
        "_stage.stage('pretrain', lambda *_: torch.ones(2**28), memory='pretrain.batch_size')()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY, check=False
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert (
        "error: stage pretrain ran out of memory" in done.stderr
        and "lower pretrain.batch_size" in done.stderr
    )
