"""Models with memory: causal for any number of segments, leaking only where asked by name, and the published
sizes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.errors import UserError
from offramp.systems.hierarchical import HierarchicalConfig, HierarchicalLM
from offramp.systems.segment_memory.model import InfiniConfig, InfiniLM, segments

SMALL = {"vocab_size": 11, "window": 6, "width": 8, "heads": 2, "ffn_width": 16}
CORES = [None, "v1", "v2", "v2_published"]


def model(**changes) -> InfiniLM:
    torch.manual_seed(0)
    return InfiniLM(InfiniConfig(**{**SMALL, **changes}))


@torch.no_grad()
def read(net: InfiniLM, windows: list[torch.Tensor], count: int) -> list[torch.Tensor]:
    """Logits after the last segment of each window, memory carried between windows."""
    memory, out = net.empty_memory(len(windows[0])), []
    for tokens in windows:
        *_, (logits, carried) = segments(net, tokens, memory, count)
        memory = carried.memory
        out.append(logits)
    return out


def changed_from(tokens: torch.Tensor, place: int) -> torch.Tensor:
    return torch.cat((tokens[:, :place], (tokens[:, place:] + 1) % 11), dim=1)


@pytest.mark.parametrize(
    ("changes", "published"),
    [
        ({"place": "input", "hrm": "v2"}, 168_452),
        ({"place": "gated", "hrm": "v2"}, 193_024),
        ({"place": "none", "hrm": "v2"}, 152_064),
        ({"place": "none"}, 78_080),
        ({"place": "input"}, 94_468),
        ({"place": "hidden"}, 78_084),
    ],
)
def test_parameter_counts_are_the_published_ones(changes, published):
    assert (
        sum(parameter.numel() for parameter in InfiniLM(InfiniConfig(97, **changes)).parameters())
        == published
    )


@given(
    place=st.sampled_from(["none", "input", "hidden", "gated"]),
    core=st.sampled_from(CORES),
    count=st.integers(1, 4),
    position=st.integers(1, 5),
)
@settings(max_examples=25, deadline=None)
def test_no_position_sees_later_tokens_in_any_segment_or_window(place, core, count, position):
    net = model(place=place, hrm=core)
    first, second = torch.randint(11, (2, 6)), torch.randint(11, (2, 6))
    before = read(net, [first, second], count)
    later = read(net, [first, changed_from(second, position)], count)
    torch.testing.assert_close(before[0], later[0])
    torch.testing.assert_close(before[1][:, :position], later[1][:, :position])
    assert not torch.equal(before[1][:, position:], later[1][:, position:])
    earlier = read(net, [changed_from(first, position), second], count)
    torch.testing.assert_close(before[0][:, :position], earlier[0][:, :position])


@pytest.mark.parametrize("place", ["input", "hidden", "gated"])
@pytest.mark.parametrize("core", CORES)
def test_a_carried_memory_holds_the_window_before(place, core):
    net = model(place=place, hrm=core)
    first, second = torch.randint(11, (2, 6)), torch.randint(11, (2, 6))
    before, other = read(net, [first, second], 2)[1], read(net, [changed_from(first, 0), second], 2)[1]
    assert (before - other).abs().max() > 1e-5


@pytest.mark.parametrize(("count", "leaks"), [(1, False), (2, True), (3, True)])
def test_the_published_reading_leaks_from_its_second_segment_on(count, leaks):
    net = model(place="input", hrm="v2_published", reads="own_window")
    tokens = torch.randint(11, (2, 6))
    difference = (
        (read(net, [tokens], count)[0] - read(net, [changed_from(tokens, 4)], count)[0])[:, :4].abs().max()
    )
    assert (difference > 1e-5) == leaks


@pytest.mark.parametrize("place", ["none", "input", "hidden", "gated"])
@pytest.mark.parametrize("core", [None, "v1", "v2"])
def test_every_trainable_parameter_gets_gradient_once_there_is_a_memory(place, core):
    net = model(place=place, hrm=core)
    tokens = torch.randint(11, (3, 6))
    *_, (_, carried) = segments(net, tokens, net.empty_memory(3), 2)
    logits, _ = net(tokens, carried.memory)
    F.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
    missing = [
        name
        for name, parameter in net.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.any())
    ]
    assert missing == []


def test_without_memory_it_is_the_hrm():
    torch.manual_seed(0)
    plain, net = HierarchicalLM(HierarchicalConfig(**SMALL)), model(place="none", hrm="v2")
    net.load_state_dict(plain.state_dict())
    tokens = torch.randint(11, (2, 6))
    torch.testing.assert_close(net(tokens, ())[0], plain(tokens)[0])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"place": "output"}, "place = 'output'"),
        ({"reads": "future"}, "reads = 'future'"),
        ({"heads": 3}, "heads = 3 do not divide"),
    ],
)
def test_impossible_settings_are_named(changes, words):
    with pytest.raises(UserError, match=words):
        InfiniConfig(**{**SMALL, **changes})
