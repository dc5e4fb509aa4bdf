"""The naive path does the library's work: equal weights give equal losses, hard tokens and exits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import naive_blockwise as naive
from benchmarks.blockwise_training import ClassifierPolicy
from benchmarks.inputs import RandomWindows, model
from benchmarks.statistics import textbook
from offramp.routing.executor import Executor
from offramp.states.statistics import Readout, token_statistics
from offramp.training.losses import total_nll
from offramp.training.sequences import InContext, repack


@pytest.fixture
def setup():
    lm = model(300, 8, 16, 2, 32, (1, 1), norm="post", tied=False)
    windows = RandomWindows(12, 8, 300)
    tokens, targets = windows.batch(torch.arange(12))
    torch.manual_seed(1)
    return lm, windows, tokens, targets, nn.Linear(16, 1)


def test_training_loss_and_gradient_are_equal(setup):
    lm, _, tokens, targets, _ = setup
    x = lm.embed(tokens).detach()
    losses = [
        naive.block_loss(lm, 0, x, targets),
        total_nll(lm.run_block(0, x).flatten(0, 1), lm.readout_matrix(0), targets.flatten()),
    ]
    torch.testing.assert_close(*losses)
    gradients = [torch.autograd.grad(loss, lm.blocks[0][0].query.weight)[0] for loss in losses]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_hard_tokens_are_the_same(setup, tmp_path):
    lm, windows, tokens, targets, classifier = setup
    states, wanted, threshold = naive.hard_tokens(
        lm, 0, classifier, lm.embed(tokens).detach(), targets, 4, 0.5
    )

    def confidence(block, x, targets):
        return torch.sigmoid(classifier(x)).squeeze(-1)

    device = torch.device("cpu")
    packed = repack(
        InContext(lm, windows, 0, device),
        lm,
        0,
        confidence,
        threshold=threshold,
        window=8,
        folder=tmp_path,
        batch_size=4,
        device=device,
    )
    x, y, _ = packed.batch(torch.arange(len(packed)))
    torch.testing.assert_close(x, states)
    assert torch.equal(y, wanted)


@pytest.mark.parametrize("threshold, exit", [(0.5, 0), (2.0, 1)], ids=["some leave", "nobody leaves"])
def test_evaluation_takes_the_same_exits_and_losses(setup, threshold, exit):
    """Losses are compared at the first exit, and at the last where nobody left.

    The naive path computes every token in the last block, also those that left before.
    """
    lm, _, tokens, targets, classifier = setup
    evaluated = naive.evaluate(lm, classifier, threshold, lm.embed(tokens).detach(), targets, 4)
    policy = ClassifierPolicy(lambda states: classifier(states).squeeze(-1), threshold)
    routed = Executor(lm).run(tokens, targets, policy)
    assert torch.equal(routed.exit.flatten(), evaluated.exit)
    same = evaluated.exit == exit
    assert same.any()
    np.testing.assert_allclose(routed.loss.flatten()[same], evaluated.loss[same], rtol=1e-4)


def test_textbook_statistics_are_equal():
    hidden, matrix, targets = torch.randn(20, 8), torch.randn(100, 8), torch.randint(100, (20,))
    statistics = token_statistics([hidden], [Readout(matrix)], targets)[0]
    for name, values in textbook(hidden, matrix, targets).items():
        torch.testing.assert_close(statistics[name], values, rtol=1e-3, atol=1e-4)
