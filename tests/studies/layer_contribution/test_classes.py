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
from studies.layer_contribution.classes import (
    class_means,
    classes,
    consensus,
    improvement,
    losses_without,
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
