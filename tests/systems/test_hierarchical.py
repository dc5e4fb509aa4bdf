"""What defines the HRM versions: who gets gradient, in which order states are updated, and the published
sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.errors import UserError
from offramp.systems.hierarchical import HierarchicalConfig, HierarchicalLM

SMALL = {"vocab_size": 11, "window": 6, "width": 8, "heads": 2, "ffn_width": 16}


def model(**changes) -> HierarchicalLM:
    torch.manual_seed(0)
    return HierarchicalLM(HierarchicalConfig(**{**SMALL, **changes}))


def gradients(net: HierarchicalLM) -> dict[str, bool]:
    """Whether each trainable parameter gets a gradient that is not zero in a first segment."""
    tokens = torch.randint(11, (3, 6))
    logits, _ = net(tokens)
    F.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
    return {
        name: parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
        for name, parameter in net.named_parameters()
        if parameter.requires_grad
    }


@pytest.mark.parametrize(("width", "published"), [(64, 152_064), (48, 89_472)])
@pytest.mark.parametrize("variant", ["v1", "v2", "v2_published"])
def test_parameter_counts_are_the_published_ones(variant, width, published):
    net = HierarchicalLM(HierarchicalConfig(97, width=width, ffn_width=4 * width, variant=variant))
    assert sum(parameter.numel() for parameter in net.parameters()) == published


@pytest.mark.parametrize("variant", ["v1", "v2"])
@pytest.mark.parametrize(
    ("periods", "cycles"), [((1, 2), 1), ((1, 2), 3), ((1, 3), 1), ((1, 2, 4), 1), ((1,), 1)]
)
def test_every_trainable_parameter_gets_gradient(variant, periods, cycles):
    reached = gradients(model(variant=variant, periods=periods, cycles=cycles))
    assert all(reached.values()), reached


def test_the_published_second_version_leaves_its_first_layer_untrained():
    learns = gradients(model(variant="v2_published"))
    assert not any(reached for name, reached in learns.items() if name.startswith("layers.0"))
    assert all(reached for name, reached in learns.items() if name.startswith("layers.1"))


def test_what_cannot_learn_is_no_trainable_parameter():
    net = model(variant="v1")
    assert [initial.requires_grad for initial in net.hierarchy.initial] == [
        False,
        True,
    ]  # z_L is overwritten before the last step
    assert not net.halt.weight.requires_grad
    assert [initial.requires_grad for initial in model().hierarchy.initial] == [True, True]


def test_the_first_version_updates_one_layer_after_the_other():
    net = model(variant="v1", cycles=2)
    tokens = torch.randint(11, (2, 6))
    e, low, high = net.embedding(tokens), *(initial.expand(2, -1, -1) for initial in net.hierarchy.initial)

    def run(layer: int, x: torch.Tensor) -> torch.Tensor:
        return net.layers[layer](x, net.cos, net.sin)

    with torch.no_grad():
        for step in range(4):
            low = run(0, low + high + e)
            if step % 2:
                high = run(1, high + low)
        logits, states = net(tokens)
        torch.testing.assert_close(states, (low, high))
        torch.testing.assert_close(logits, net.head(high))


@pytest.mark.parametrize("variant", ["v2", "v2_published"])
def test_the_second_version_updates_all_layers_from_the_old_states(variant):
    net = model(variant=variant)
    tokens = torch.randint(11, (2, 6))
    e, low, high = net.embedding(tokens), *(initial.expand(2, -1, -1) for initial in net.hierarchy.initial)
    with torch.no_grad():
        low = net.layers[0](low + high + e, net.cos, net.sin)
        expected = [net.layers[index](low + high + e, net.cos, net.sin) for index in range(2)]
        torch.testing.assert_close(net(tokens)[1], tuple(expected))


def test_a_segment_starts_from_the_detached_states_of_the_one_before():
    net = model()
    tokens = torch.randint(11, (2, 6))
    _, states = net(tokens)
    for state in states:
        state.retain_grad()
    net(tokens, states)[0].sum().backward()
    assert all(state.grad is None for state in states)
    assert all(initial.grad is None for initial in net.hierarchy.initial)


@given(
    segments=st.integers(1, 3), place=st.integers(1, 5), variant=st.sampled_from(["v1", "v2", "v2_published"])
)
@settings(max_examples=15, deadline=None)
def test_no_position_sees_later_tokens(segments, place, variant):
    net = model(variant=variant)
    tokens = torch.randint(11, (2, 6))
    other = torch.cat((tokens[:, :place], (tokens[:, place:] + 1) % 11), dim=1)
    runs = []
    for given_tokens in (tokens, other):
        states = ()
        with torch.no_grad():
            for _ in range(segments):
                logits, states = net(given_tokens, states)
        runs.append(logits)
    torch.testing.assert_close(runs[0][:, :place], runs[1][:, :place])
    assert not torch.equal(runs[0][:, place:], runs[1][:, place:])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"heads": 3}, "heads = 3 do not divide"),
        ({"variant": "v3"}, "variant = 'v3'"),
        ({"periods": (2, 3)}, r"periods = \(2, 3\) do not divide"),
        ({"periods": (2, 1)}, "do not divide the last one"),
        ({"periods": (0, 2)}, "count steps"),
        ({"cycles": 0}, "cycles = 0"),
    ],
)
def test_impossible_settings_are_named(changes, words):
    with pytest.raises(UserError, match=words):
        HierarchicalConfig(**{**SMALL, **changes})
