"""Layer contribution: the textbook formulas, and why classes by final loss prove nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from offramp.errors import UserError
from offramp.models.native import BlockwiseLM, ModelConfig
from studies.measures.layer_contribution import (
    LayerStatistics,
    agreement,
    class_means,
    classes,
    consensus,
    distinct_contexts,
    flag_agreement,
    improvement,
    layer_statistics,
    losses_without,
)

CONFIG = {
    "vocab_size": 20,
    "window": 12,
    "width": 16,
    "heads": 2,
    "ffn_width": 32,
    "block_layers": (1, 1, 1),
    "tied": False,
}


@pytest.fixture
def model() -> BlockwiseLM:
    torch.manual_seed(0)
    return BlockwiseLM(ModelConfig(**CONFIG, norm="post"))


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_statistics_are_those_of_the_logit_lens(norm):
    torch.manual_seed(1)
    model, tokens = BlockwiseLM(ModelConfig(**CONFIG, norm=norm)), torch.randint(20, (5, 12))
    targets = torch.randint(20, (5, 12))
    found = layer_statistics(model, tokens, targets, batch_size=2)
    before = model.embed(tokens)
    for layer, state in enumerate(model(tokens)):
        logits = model.logits(2, state).flatten(0, 1)
        loss = F.cross_entropy(logits, targets.flatten(), reduction="none")
        np.testing.assert_allclose(found.loss[layer], loss.detach(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(found.max_prob[layer], logits.softmax(-1).amax(-1).detach(), rtol=1e-4)
        assert (found.argmax[layer] == logits.argmax(-1).numpy()).all()
        np.testing.assert_allclose(
            found.step[layer], (state - before).norm(dim=-1).flatten().detach(), rtol=1e-4
        )
        turned = 1 - F.cosine_similarity(state, before, dim=-1).flatten()
        np.testing.assert_allclose(found.turn[layer], turned.detach(), rtol=1e-3, atol=1e-5)
        before = state
    assert found.loss.shape == (3, 60) and (found.target == targets.flatten().numpy()).all()


def test_the_first_step_of_a_post_norm_model_has_the_length_of_the_norm(model):
    found = layer_statistics(model, torch.randint(20, (4, 12)), torch.randint(20, (4, 12)))
    assert np.allclose(found.step[0], 4, atol=0.3)  # sqrt(16) minus an embedding of 0.02


def test_a_layer_left_out_is_not_run(model):
    tokens, targets = torch.randint(20, (5, 12)), torch.randint(20, (5, 12))
    found = losses_without(model, tokens, targets, batch_size=2)
    x = model.run_block(2, model.run_block(0, model.embed(tokens)))
    loss = F.cross_entropy(model.logits(2, x).flatten(0, 1), targets.flatten(), reduction="none")
    np.testing.assert_allclose(found[1], loss.detach(), rtol=1e-4, atol=1e-5)


def test_classes_by_the_own_last_loss_show_an_improvement_that_is_not_there():
    """All layers are equally good: losses are one difficulty per token plus noise of each layer."""
    random = np.random.default_rng(0)
    shared = random.gamma(4, 1, 20_000)
    models = [shared + 3 + random.standard_normal((4, 20_000)) for _ in range(3)]
    own = improvement(class_means(models[0], classes(models[0][-1])))
    others = improvement(class_means(models[0], classes(consensus([losses[-1] for losses in models], 0))))
    assert own[0] > 0.05 and own[2] < -0.03
    assert np.abs(others).max() < 0.02


@settings(deadline=None, max_examples=50)
@given(arrays.arrays(np.float64, st.integers(1, 60), elements=st.floats(0, 10)))
def test_classes_cover_every_token_and_rise(difficulty):
    found = classes(difficulty)
    for low, high in ((0, 1), (1, 2)):
        if (found == low).any() and (found == high).any():
            assert difficulty[found == low].max() <= difficulty[found == high].min()
    assert set(found) <= {0, 1, 2} and (found == 0).mean() >= 0.25 - 1 / len(difficulty)


def test_an_empty_class_has_no_mean():
    means = class_means(np.array([[1.0, 2.0], [3.0, 5.0]]), np.array([0, 2]))
    assert means[:, 0].tolist() == [1, 3] and np.isnan(means[:, 1]).all() and means[:, 2].tolist() == [2, 5]


def of(argmax: list[list[int]], target: list[int]) -> LayerStatistics:
    blank = np.zeros((len(argmax), len(target)))
    return LayerStatistics(blank, np.array(argmax), blank, blank, blank, np.array(target))


def test_two_different_wrong_answers_agree_in_their_flags_only():
    found = of([[1, 2, 3, 4], [1, 5, 3, 0]], [1, 0, 3, 0])
    assert agreement(found, 0).tolist() == [True, False, True, False]
    assert flag_agreement(found, 0).tolist() == [True, True, True, False]


@settings(deadline=None, max_examples=50)
@given(
    arrays.arrays(np.int64, (3, 40), elements=st.integers(0, 4)),
    arrays.arrays(np.int64, 40, elements=st.integers(0, 4)),
)
def test_flags_never_agree_less_than_predictions(argmax, target):
    found = of(argmax.tolist(), target.tolist())
    for layer in range(3):
        assert not (agreement(found, layer) & ~flag_agreement(found, layer)).any()
    assert agreement(found, 2).all()


def test_a_periodic_text_has_as_many_contexts_as_its_period():
    text = np.tile(np.arange(7), 100)
    tokens, targets = text[: 8 * 64].reshape(8, 64), text[1 : 8 * 64 + 1].reshape(8, 64)
    assert distinct_contexts(tokens, targets, 5) == 7


def test_named_errors():
    with pytest.raises(UserError, match="quantiles"):
        classes(np.arange(4.0), (0.8, 0.2))
    with pytest.raises(UserError, match="at least 2 models"):
        consensus([np.zeros(3)], 0)
    with pytest.raises(UserError, match="length = 9"):
        distinct_contexts(np.zeros((2, 8), int), np.zeros((2, 8), int), 9)
