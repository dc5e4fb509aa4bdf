"""Lagged caches: passes converge to the recurrence, caches follow their sample, and OACD is its formula."""

from __future__ import annotations

import pytest
import torch

from offramp.errors import UserError
from offramp.systems.lagged.model import LaggedConfig, LaggedLM, SampleCache, oacd

SMALL = {"vocab_size": 11, "window": 5, "width": 8, "heads": 2, "ffn_width": 16}


def model(layers: int) -> LaggedLM:
    torch.manual_seed(0)
    return LaggedLM(LaggedConfig(**SMALL, layers=layers))


@pytest.mark.parametrize(("layers", "published"), [(1, 78_080), (2, 149_952)])
def test_parameter_counts_are_the_published_ones(layers, published):
    assert (
        sum(parameter.numel() for parameter in LaggedLM(LaggedConfig(97, layers=layers)).parameters())
        == published
    )


def test_oacd_equals_its_formula():
    states = torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 0.0], [-1.0, 2.0]]])
    rows = states.reshape(4, 2)
    mean = rows.mean(0)
    assert oacd(states).item() == pytest.approx((-(rows - mean).norm() / 4 + 0.1 * mean.norm() ** 2).item())


def test_as_many_passes_as_positions_give_the_recurrence():
    net = model(1)
    tokens, cache = torch.randint(11, (2, 5)), torch.randn(1, 2, 5, 8)
    with torch.no_grad():
        inputs = net.embedding(tokens)
        for place in range(5):  # one position after the other, each from the true state before it
            states = net.layers[0](inputs, net.cos[:5], net.sin[:5])
            if place < 4:
                inputs[:, place + 1] += states[:, place]
        for step in range(5):
            logits, cache = net(tokens, cache, step)
        torch.testing.assert_close(cache[0], states)
        torch.testing.assert_close(logits, net.head(states))


def test_the_second_layer_is_updated_every_second_pass():
    net = model(2)
    tokens, cache = torch.randint(11, (2, 5)), torch.randn(2, 2, 5, 8)
    with torch.no_grad():
        _, first = net(tokens, cache, 0)
        _, second = net(tokens, first, 1)
    assert torch.equal(first[1], cache[1]) and not torch.equal(second[1], cache[1])
    shifted = torch.cat((torch.zeros(2, 1, 8), first[1][:, :-1]), dim=1)
    with torch.no_grad():
        torch.testing.assert_close(second[1], net.layers[1](second[0] + shifted, net.cos, net.sin))


@pytest.mark.parametrize("layers", [1, 2])
def test_no_position_sees_later_tokens(layers):
    net = model(layers)
    tokens = torch.randint(11, (2, 5))
    other = torch.cat((tokens[:, :3], (tokens[:, 3:] + 1) % 11), dim=1)
    runs = []
    for given in (tokens, other):
        cache = torch.zeros(layers, 2, 5, 8)
        with torch.no_grad():
            for step in range(4):
                logits, cache = net(given, cache, step)
        runs.append(logits)
    torch.testing.assert_close(runs[0][:, :3], runs[1][:, :3])
    assert not torch.equal(runs[0][:, 3:], runs[1][:, 3:])


@pytest.mark.parametrize("layers", [1, 2])
def test_oacd_trains_every_layer_but_not_the_head(layers):
    net = model(layers)
    cache = torch.randn(layers, 2, 5, 8)
    _, states = net(torch.randint(11, (2, 5)), cache, 1)
    net.features_loss(states, 1).backward()
    assert all(parameter.grad is not None for parameter in net.layers.parameters())
    assert net.embedding.weight.grad is not None and net.head.weight.grad is None


def test_a_cache_follows_its_window_whatever_the_order():
    cache = SampleCache(2, 6, LaggedConfig(**SMALL, layers=2), torch.Generator().manual_seed(0))
    assert 0.015 < cache.states.std() < 0.025
    order = torch.tensor([[4, 1, 5], [0, 1, 2]])
    new = torch.randn(2, 2, 3, 5, 8, requires_grad=True)  # models, layers, windows, positions, width
    rest = torch.tensor([[0, 2, 3], [5, 4, 3]])
    before = cache.read(rest)
    cache.write(order, new)
    assert not cache.states.requires_grad
    assert torch.equal(cache.read(torch.tensor([[1], [2]])), torch.stack((new[0, :, 1:2], new[1, :, 2:3])))
    assert torch.equal(cache.read(rest), before)


def test_other_numbers_of_layers_are_named():
    with pytest.raises(UserError, match="layers = 3"):
        LaggedConfig(11, layers=3)
    with pytest.raises(UserError, match="heads = 3 do not divide width = 64"):
        LaggedConfig(11, heads=3)
    with pytest.raises(UserError, match="period = 0"):
        LaggedConfig(11, layers=2, period=0)
