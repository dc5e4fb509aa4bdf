"""Fits of exit classifiers on problems whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from offramp.exits.labels import KINDS
from offramp.training.exit_classifiers import fit_classifier
from offramp.training.inputs import HeldInputs


def known_problem(seed=0, tokens=6000, width=8):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(tokens, width, generator=generator) * 5 + 3
    truth = (inputs[:, 0] - 3) / 5  # the one direction that matters
    noise = torch.randn(tokens, generator=generator) * 0.3
    return inputs, truth, noise


@pytest.mark.parametrize("label", ["agreement", "loss", "gain"])  # one of each kind
@pytest.mark.parametrize("hidden", [[], [16]])
def test_every_kind_of_label_yields_scores_that_rise_with_the_right_to_leave(label, hidden):
    """Costs are low where leaving is right, probabilities and events high: each score rises with it."""
    inputs, truth, noise = known_problem()
    labels = {
        "binary": (truth + noise > 0).float(),
        "probability": torch.sigmoid(truth + noise),
        "cost": 4 - 3 * (truth + noise),
    }[KINDS[label]].unsqueeze(1)
    fit = fit_classifier(
        (HeldInputs(inputs[:4000]), labels[:4000]),
        (HeldInputs(inputs[4000:]), labels[4000:]),
        label,
        hidden,
        learning_rate=2e-2,
        batch_size=500,
        max_epochs=40,
        patience=2,
        seed=0,
    )
    with torch.no_grad():
        score = fit.classifier(inputs[4000:])
    assert np.corrcoef(score, truth[4000:])[0, 1] > 0.97
    assert fit.curve[fit.best_epoch - 1]["select_loss"] == min(row["select_loss"] for row in fit.curve)


def test_a_fit_is_reproducible_and_says_when_it_did_not_converge():
    inputs, truth, noise = known_problem()
    wanted = (truth + noise).unsqueeze(1)
    args = (
        (HeldInputs(inputs[:4000]), wanted[:4000]),
        (HeldInputs(inputs[4000:]), wanted[4000:]),
        "gain",
        [8],
    )
    how = {"max_epochs": 6, "patience": 3, "seed": 5}
    one, two = (fit_classifier(*args, learning_rate=1e-2, batch_size=500, **how) for _ in range(2))
    for name, value in one.classifier.state_dict().items():
        assert torch.equal(value, two.classifier.state_dict()[name])
    few = how | {"max_epochs": 2}
    assert not fit_classifier(*args, learning_rate=1e-5, batch_size=256, **few).converged


def test_a_classifier_of_benefits_predicts_nats_to_every_later_exit():
    inputs, truth, noise = known_problem()
    wanted = torch.stack((2 + truth, 5 - truth), 1) + 0.1 * noise.unsqueeze(1)
    fit = fit_classifier(
        (HeldInputs(inputs[:4000]), wanted[:4000]),
        (HeldInputs(inputs[4000:]), wanted[4000:]),
        "gain",
        [16],
        learning_rate=2e-2,
        batch_size=500,
        max_epochs=40,
        patience=2,
        seed=0,
    )
    with torch.no_grad():
        torch.testing.assert_close(fit.classifier.costs(inputs[4000:]), wanted[4000:], atol=0.3, rtol=0)
        score = fit.classifier(inputs[4000:])  # of going on to full depth
    assert np.corrcoef(score, truth[4000:])[0, 1] > 0.99
