"""What defines layer supervision and iterated refinement."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offramp.errors import UserError
from offramp.models.native import BlockwiseLM, ModelConfig
from offramp.systems.deep_supervision import segments_objective
from offramp.systems.iterated import IteratedLM, unrolled
from offramp.systems.objectives import (
    OBJECTIVES,
    block_losses,
    block_weights,
    last_logits,
    named,
    repeated,
    supervised,
)

TOKENS = torch.randint(0, 7, (3, 9), generator=torch.Generator().manual_seed(1))
X, Y = TOKENS[:, :-1], TOKENS[:, 1:]


def model(blocks: int = 3, vocabulary: int = 7, width: int = 8, window: int = 8) -> BlockwiseLM:
    torch.manual_seed(0)
    sizes = {"norm": "post", "tied": False}
    return BlockwiseLM(
        ModelConfig(vocabulary, window, width, 2 if width == 8 else 4, 4 * width, (1,) * blocks, **sizes)
    )


def count(one: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in one.parameters())


@given(st.sampled_from(OBJECTIVES), st.integers(1, 8))
def test_the_deepest_block_never_weighs_less_than_another(name, blocks):
    weights = block_weights(name, blocks)
    assert len(weights) == blocks and max(weights) == weights[-1]


def test_losses_are_the_weighted_losses_of_the_blocks():
    one = model()
    losses = block_losses(one, X, Y)
    expected = {
        "final": losses[2],
        "sum": losses.sum(),
        "weighted": losses[0] + 2 * losses[1] + 3 * losses[2],
        "normalised": losses.mean(),
    }
    for name in OBJECTIVES:
        objective = named(name, 3)
        loss, carried = objective.loss(one, X, Y, ())
        torch.testing.assert_close(loss, expected[name])
        assert carried == () and objective.segments == 1
        torch.testing.assert_close(objective.logits(one, X), last_logits(one, X))


def test_supervision_reaches_each_layer_directly():
    """The first block's gradient under sum is that of its own exit and those of deeper ones; alone, its own
    is there too."""
    one = model()
    supervised([1.0, 0.0, 0.0]).loss(one, X, Y, ())[0].backward()
    reached = {name: weight.grad is not None for name, weight in one.named_parameters()}
    assert reached["blocks.0.0.query.weight"] and reached["heads.0"] and reached["embedding.weight"]
    assert not any(found for name, found in reached.items() if name.startswith(("blocks.1", "blocks.2")))


@pytest.mark.parametrize(("layers", "parameters"), [(1, 78_080), (4, 275_072), (8, 537_728)])
def test_parameter_counts_are_the_published_ones(layers, parameters):
    plain = model(layers, 97, 64, 64)
    assert count(plain) == parameters and count(IteratedLM(plain)) == parameters + 4_096


def test_every_parameter_of_iterated_refinement_learns_in_the_first_pass():
    one = IteratedLM(model())
    objective = segments_objective(2)
    loss, carried = objective.loss(one, X, Y, ())
    loss.backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in one.parameters())
    one.zero_grad()
    loss, _ = objective.loss(one, X, Y, carried)
    loss.backward()
    assert one.initial.grad is None  # the second pass starts from states, which come without their graph


def test_evaluation_and_unrolling_take_the_logits_of_the_last_pass():
    one = IteratedLM(model())
    first, states = one(X)
    second, _ = one(X, states)
    torch.testing.assert_close(segments_objective(2).logits(one, X), second)
    torch.testing.assert_close(unrolled(one, X, 2), second)
    torch.testing.assert_close(unrolled(one, X, 1), first)
    unrolled(one, X, 2).sum().backward()
    assert one.initial.grad.abs().sum() > 0


@pytest.mark.parametrize("place", [0, 3, 6])
def test_no_pass_sees_the_future(place):
    one = IteratedLM(model())
    changed = X.clone()
    changed[:, place + 1 :] = (changed[:, place + 1 :] + 1) % 7
    torch.testing.assert_close(unrolled(one, X, 3)[:, : place + 1], unrolled(one, changed, 3)[:, : place + 1])


def test_repeating_changes_the_number_of_updates_alone():
    objective = repeated(named("sum", 3), 4)
    assert objective.segments == 4 and objective.loss(model(), X, Y, ())[1] == ()


def test_unknown_objectives_and_wrong_numbers_of_weights_are_named():
    with pytest.raises(UserError, match=r"objective = 'mean'.*final, sum, weighted, normalised"):
        named("mean", 3)
    with pytest.raises(UserError, match="2 given for 3 blocks"):
        supervised([1.0, 1.0]).loss(model(), X, Y, ())
