"""States come back from disk as they were, to half precision, whatever their size; what does not fit is
named."""

from __future__ import annotations

import shutil
from collections import namedtuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from offramp.errors import UserError
from offramp.training.state_cache import StateCache

SIZES = {"windows": 5, "window": 3, "exits": 2, "width": 4, "entries": 2}


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=2),
    magnitude=st.floats(-12, 12),
    seed=st.integers(0, 2**31),
)
def test_what_is_written_in_any_parts_is_read_in_any_order(tmp_path, sizes, magnitude, seed):
    shutil.rmtree(tmp_path)
    generator = torch.Generator().manual_seed(seed)
    cache = StateCache(tmp_path, **SIZES)
    cache.make("tokens")
    count = sum(sizes)
    wanted = torch.randn(2, count, 3, 4, generator=generator) * 10.0**magnitude
    entries = torch.randint(10**6, (count, 3, 2), generator=generator)
    start = 0
    for size in sizes if count <= 5 else sizes[:1]:
        part = slice(start, start + size)
        cache.write(start, list(wanted[:, part]), entries[part])
        start += size
    order = torch.randperm(start, generator=generator)
    for read, exit in zip(cache.states(order), wanted):
        scale = exit[order].square().mean(-1, keepdim=True).sqrt()
        assert ((read - exit[order]).abs() <= 2**-11 * exit[order].abs() + 1e-7 * scale).all()
    assert torch.equal(cache.entries_of(order), entries[order])


def test_states_of_zero_stay_zero_and_infinite_ones_are_refused(tmp_path):
    cache = StateCache(tmp_path, **SIZES)
    cache.make("tokens")
    x, none = torch.zeros(1, 3, 4), torch.zeros(1, 3, 2, dtype=torch.long)
    cache.write(4, [x, x], none)
    assert not torch.stack(cache.states(torch.tensor([4]))).any()
    x[0, 1, 2] = torch.nan
    with pytest.raises(UserError, match=r"after block 1 are not finite numbers; set pretrain\.precision"):
        cache.write(4, [torch.zeros_like(x), x], none)


def test_files_that_are_there_are_kept_and_a_full_disk_is_named(tmp_path, monkeypatch):
    cache = StateCache(tmp_path / "states", **SIZES)
    cache.make("tokens")
    x = torch.ones(5, 3, 4)
    cache.write(0, [x, 2 * x], torch.ones(5, 3, 2, dtype=torch.long))
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(free=100))
    cache.make("tokens")
    assert torch.equal(cache.states(torch.tensor([3]))[1], 2 * x[:1])
    with pytest.raises(UserError, match=r"pretrain\.frozen\.tokens: the states of 15 tokens take .* free"):
        StateCache(tmp_path / "others", **SIZES).make("pretrain.frozen.tokens")
