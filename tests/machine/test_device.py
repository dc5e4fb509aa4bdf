"""The device that is asked for is there and has the precision, or the message says what to change."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from offramp.errors import UserError
from offramp.machine.device import autocast, require_precision, seed_all, setup

CPU = torch.device("cpu")


def test_threads_are_set_and_auto_finds_a_device():
    threads = torch.get_num_threads()
    try:
        assert setup("cpu", 1) == CPU and torch.get_num_threads() == 1
        assert setup("auto", 1).type in ("cuda", "mps", "cpu")
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("device", ["tpu", "meta", ""])
def test_a_device_that_is_not_available_is_refused_with_those_that_are(device):
    with pytest.raises(UserError, match=rf"runtime\.device = '{device}' is not available here; found: .*cpu"):
        setup(device, torch.get_num_threads())


@pytest.mark.parametrize("device", ["cpu:99", "cpu:1", "cpu:", "cpu:-1", "cpu:x", "cpu:1e3", "cpu:0:0"])
def test_a_number_that_no_device_has_is_refused(device):
    with pytest.raises(UserError, match=rf"runtime\.device = '{device}': there is no such one .*use cpu"):
        setup(device, torch.get_num_threads())


def test_equal_seeds_draw_equal_numbers():
    draws = []
    for seed in (7, 7, 8):
        seed_all(seed)
        draws.append((torch.rand(1).item(), np.random.rand()))
    assert draws[0] == draws[1] and draws[0][0] != draws[2][0] and draws[0][1] != draws[2][1]


def test_every_device_has_fp32_and_the_cpu_has_bf16():
    require_precision(torch.device("cuda"), "fp32", "collect.precision")
    require_precision(CPU, "bf16", "collect.precision")


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_products_are_computed_in_the_precision(precision, dtype):
    with autocast(CPU, precision):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == dtype
