"""Easy and hard tokens: why classes by final loss prove nothing, and what a layer left out costs."""

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
from studies.common.characters import WINDOW, Characters
from studies.common.layer_statistics import layer_statistics
from studies.layer_contribution.classes import (
    PATTERN,
    SHORT,
    class_means,
    classes,
    consensus,
    cut_context,
    improvement,
    likeliest,
    losses_without,
    unseen,
)


def test_a_layer_left_out_is_not_run():
    torch.manual_seed(0)
    model = BlockwiseLM(
        ModelConfig(20, 12, width=16, heads=2, ffn_width=32, block_layers=(1, 1, 1), norm="post", tied=False)
    )
    tokens, targets = torch.randint(20, (5, 12)), torch.randint(20, (5, 12))
    losses = losses_without(model, tokens, targets, batch_size=2)
    x = model.run_block(2, model.run_block(0, model.embed(tokens)))
    loss = F.cross_entropy(model.logits(2, x).flatten(0, 1), targets.flatten(), reduction="none")
    np.testing.assert_allclose(losses[1], loss.detach(), rtol=1e-4, atol=1e-5)


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
    of_token = classes(difficulty)
    for low, high in ((0, 1), (1, 2)):
        if (of_token == low).any() and (of_token == high).any():
            assert difficulty[of_token == low].max() <= difficulty[of_token == high].min()
    assert set(of_token) <= {0, 1, 2} and (of_token == 0).mean() >= 0.25 - 1 / len(difficulty)


def test_an_empty_class_has_no_mean():
    means = class_means(np.array([[1.0, 2.0], [3.0, 5.0]]), np.array([0, 2]))
    assert means[:, 0].tolist() == [1, 3] and np.isnan(means[:, 1]).all() and means[:, 2].tolist() == [2, 5]


def test_named_errors():
    with pytest.raises(UserError, match="quantiles"):
        classes(np.arange(4.0), (0.8, 0.2))
    with pytest.raises(UserError, match="at least 2 models"):
        consensus([np.zeros(3)], 0)


def characters(train: list[int], test: list[int], vocab_size: int) -> Characters:
    """Ids of both splits, of which the test split has whole windows and one target more."""
    assert len(test) % WINDOW == 1
    return Characters(
        {"train": torch.tensor(train), "test": torch.tensor(test)}, "".join(map(chr, range(vocab_size)))
    )


def test_patterns_and_likeliest_characters_are_those_of_the_training_text():
    random = np.random.default_rng(0)
    train, test = random.integers(4, size=300).tolist(), random.integers(4, size=2 * WINDOW + 1).tolist()
    data = characters(train, test, 5)
    known = {tuple(train[at : at + PATTERN]) for at in range(len(train) - PATTERN + 1)}
    counts: dict[tuple[int, ...], list[int]] = {}
    for at in range(len(train) - 2):
        counts.setdefault(tuple(train[at : at + 2]), [0] * 5)[train[at + 2]] += 1
    new, common = unseen(data, "test"), likeliest(data, "test")
    assert len(new) == len(common) == 2 * WINDOW and 0 < new.mean() < 1
    assert not new[: PATTERN - 2].any() and not common[0]
    for token in range(2 * WINDOW):
        target = token + 1
        if token >= PATTERN - 2:
            assert new[token] == (tuple(test[target - PATTERN + 1 : target + 1]) not in known)
        if token >= 1:
            of_context = counts[tuple(test[target - 2 : target])]
            if sorted(of_context)[-2:][0] < max(of_context):  # of equally many either may be called likeliest
                assert common[token] == (np.argmax(of_context) == test[target])


def test_a_context_cut_short_holds_the_last_tokens_only():
    torch.manual_seed(0)
    model = BlockwiseLM(
        ModelConfig(20, WINDOW, width=16, heads=2, ffn_width=32, block_layers=(1, 1), norm="post", tied=False)
    )
    tokens, targets = torch.randint(20, (2, WINDOW)), torch.randint(20, (2, WINDOW))
    short, whole = cut_context(model, tokens, targets), layer_statistics(model, tokens, targets).loss[-1]
    changed = tokens.clone()
    changed[:, : WINDOW - SHORT] = (changed[:, : WINDOW - SHORT] + 1) % 20
    np.testing.assert_allclose(short[:SHORT], whole[:SHORT], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(cut_context(model, changed, targets)[-SHORT:], short[-SHORT:], rtol=1e-4)
    assert not np.allclose(whole[-SHORT:], short[-SHORT:], atol=1e-4)
