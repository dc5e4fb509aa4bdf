"""The confidence-routed transformer: its losses, and routing that computes nothing it skips."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from offramp.errors import UserError
from offramp.models.native import BlockwiseLM, ModelConfig
from offramp.routing.executor import Executor, Work
from offramp.systems.confidence_routing import (
    VARIANTS,
    MaxProbPolicy,
    loss_weights,
    routed_objective,
    with_exits,
)

SIZES = {
    "vocab_size": 30,
    "window": 16,
    "width": 64,
    "heads": 4,
    "ffn_width": 256,
    "norm": "post",
    "tied": False,
}


def build(layers: int = 4, **changes) -> BlockwiseLM:
    torch.manual_seed(0)
    model = BlockwiseLM(ModelConfig(**SIZES | changes, block_layers=(1,) * layers))
    with torch.no_grad():
        model.heads[0].mul_(20)  # confident enough that some leave
    return model


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    return torch.randint(30, (6, 16)), torch.randint(30, (6, 16))


@pytest.mark.parametrize(
    ("layers", "vocab", "count"), [(2, 30, 135_168), (4, 30, 266_496), (4, 97, 275_072), (2, 97, 143_744)]
)
def test_parameters_are_those_published(layers, vocab, count):
    assert sum(weight.numel() for weight in build(layers, vocab_size=vocab).parameters()) == count


def test_weights_of_the_variants():
    weights = {name: loss_weights(name, 4, 2) for name in VARIANTS}
    assert weights == {
        "shallow and deep": (0, 0.5, 0, 0.5),
        "every layer": (1, 1, 1, 1),
        "mean of layers": (0.25,) * 4,
        "routing aware": (0.5, 1, 0.5, 1),
    }


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loss_is_the_weighted_sum_over_layers(variant, batch):
    model, (tokens, targets) = build(), batch
    weights = loss_weights(variant, 4, 2)
    loss, carried = routed_objective(weights, 2, 0.8).loss(model, tokens, targets, ())
    wanted = sum(
        weight * F.cross_entropy((state @ model.heads[0].T).flatten(0, 1), targets.flatten())
        for weight, state in zip(weights, model(tokens))
    )
    torch.testing.assert_close(loss, wanted)
    assert carried == ()
    loss.backward()
    assert all(
        parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters()
    )


def test_evaluation_takes_the_shallow_logits_where_they_are_sure(batch):
    model, (tokens, _) = build(), batch
    states = model(tokens)
    shallow, deep = (states[layer] @ model.heads[0].T for layer in (1, 3))
    threshold = float(shallow.softmax(-1).amax(-1).median())
    outputs = routed_objective((0, 0.5, 0, 0.5), 2, threshold).logits(model, tokens)
    early = shallow.softmax(-1).amax(-1) >= threshold
    assert 0.3 < early.float().mean() < 0.7
    torch.testing.assert_close(outputs[early], shallow[early])
    torch.testing.assert_close(outputs[~early], deep[~early])


@pytest.mark.parametrize("blocks", [(2, 2), (1, 3), (4,), (1, 1, 2)])
def test_other_exits_of_the_same_weights_predict_the_same(blocks, batch):
    model, (tokens, _) = build(), batch
    cut = with_exits(model, blocks)
    assert sum(weight.numel() for weight in cut.parameters()) == sum(
        weight.numel() for weight in model.parameters()
    )
    states, depth = model(tokens), 0
    for layers, state in zip(blocks, cut(tokens)):
        depth += layers
        assert torch.equal(state, states[depth - 1])


def test_a_token_that_left_is_not_computed(batch):
    model, (tokens, targets) = build(), batch
    cut = with_exits(model, (2, 2))
    early = cut.logits(0, cut(tokens)[0]).softmax(-1).amax(-1)
    threshold, work = float(early.median()), Work()
    calls = []
    cut.blocks[1][0].attn_out.register_forward_hook(
        lambda module, given, out: calls.append(given[0].numel() // 64)
    )
    routed = Executor(cut).run(tokens, targets, MaxProbPolicy(cut, [threshold]), work)
    leaves = early >= threshold
    assert torch.equal(routed.exit == 0, leaves)
    stays = int((~leaves).sum())
    assert work.layer_tokens == [96, 96, stays, stays] and calls == [stays]
    torch.testing.assert_close(routed.confidence[leaves], early[leaves])


def test_nobody_and_everybody(batch):
    cut, (tokens, targets) = with_exits(build(), (2, 2)), batch
    run = Executor(cut).run
    nobody, everybody = (run(tokens, targets, MaxProbPolicy(cut, [threshold])) for threshold in (1.1, 0.0))
    assert (nobody.exit == 1).all() and (everybody.exit == 0).all()
    torch.testing.assert_close(nobody.loss, run(tokens, targets, None).loss)


def test_named_errors():
    with pytest.raises(UserError, match="routing loss = 'LPT' is not known; choose from shallow and deep"):
        loss_weights("LPT", 4, 2)
    with pytest.raises(
        UserError, match="shallow exit = 4: a model of 4 layers can have it after layer 1 to 3"
    ):
        loss_weights("every layer", 4, 4)
    with pytest.raises(UserError, match="has 3 layers, the model has 4"):
        with_exits(build(), (2, 1))
    with pytest.raises(UserError, match="give one for each of the 3 exits"):
        MaxProbPolicy(build(), [0.5])
