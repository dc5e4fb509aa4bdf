"""Statistics of layers: the textbook formulas."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from offramp.errors import UserError
from offramp.models.native import BlockwiseLM, ModelConfig
from studies.common.layer_statistics import distinct_contexts, layer_statistics

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
    statistics = layer_statistics(model, tokens, targets, batch_size=2)
    before = model.embed(tokens)
    for layer, state in enumerate(model(tokens)):
        logits = model.logits(2, state).flatten(0, 1)
        loss = F.cross_entropy(logits, targets.flatten(), reduction="none")
        np.testing.assert_allclose(statistics.loss[layer], loss.detach(), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            statistics.max_prob[layer], logits.softmax(-1).amax(-1).detach(), rtol=1e-4
        )
        assert (statistics.argmax[layer] == logits.argmax(-1).numpy()).all()
        np.testing.assert_allclose(
            statistics.step[layer], (state - before).norm(dim=-1).flatten().detach(), rtol=1e-4
        )
        full = model.logits(2, model(tokens)[-1]).flatten(0, 1).log_softmax(-1)
        apart = F.kl_div(logits.log_softmax(-1), full, reduction="none", log_target=True).sum(-1)
        np.testing.assert_allclose(statistics.divergence[layer], apart.detach(), rtol=1e-3, atol=1e-5)
        turned = 1 - F.cosine_similarity(state, before, dim=-1).flatten()
        np.testing.assert_allclose(statistics.turn[layer], turned.detach(), rtol=1e-3, atol=1e-5)
        before = state
    assert statistics.loss.shape == (3, 60) and (statistics.target == targets.flatten().numpy()).all()


def test_the_first_step_of_a_post_norm_model_has_the_length_of_the_norm(model):
    statistics = layer_statistics(model, torch.randint(20, (4, 12)), torch.randint(20, (4, 12)))
    assert np.allclose(statistics.step[0], 4, atol=0.3)  # sqrt(16) minus an embedding of 0.02


def test_a_periodic_text_has_as_many_contexts_as_its_period():
    text = np.tile(np.arange(7), 100)
    tokens, targets = text[: 8 * 64].reshape(8, 64), text[1 : 8 * 64 + 1].reshape(8, 64)
    assert distinct_contexts(tokens, targets, 5) == 7
    with pytest.raises(UserError, match="length = 9"):
        distinct_contexts(np.zeros((2, 8), int), np.zeros((2, 8), int), 9)
