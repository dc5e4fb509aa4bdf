"""Exit classifiers and calibration on states whose answer is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from offramp.errors import UserError
from offramp.exits.calibration import expected_calibration_error, fit_calibrator, reliability
from offramp.exits.classifier import ExitClassifier, fit_classifier
from offramp.exits.labels import KINDS
from offramp.exits.ranking import loss_gap, most_confident
from offramp.exits.signals import SIGNALS, raw_signal
from offramp.exits.train import auroc, split_calibration


def known_problem(seed=0, tokens=6000, width=8):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(tokens, width, generator=generator) * 5 + 3
    truth = (inputs[:, 0] - 3) / 5  # the one direction that matters
    noise = torch.randn(tokens, generator=generator) * 0.3
    return inputs, truth, noise


@pytest.mark.parametrize("label", sorted(KINDS))
@pytest.mark.parametrize("hidden", [[], [16]])
def test_every_kind_of_label_yields_scores_that_rise_with_the_right_to_leave(label, hidden):
    """Costs are low where leaving is right, probabilities and events high: the score rises with it in each case."""
    inputs, truth, noise = known_problem()
    labels = {"binary": (truth + noise > 0).float(), "probability": torch.sigmoid(truth + noise),
              "cost": 4 - 3 * (truth + noise)}[KINDS[label]]
    fit = fit_classifier((inputs[:4000], labels[:4000]), (inputs[4000:], labels[4000:]), label, hidden, 1e-2, 256, 40, 4, 0)
    with torch.no_grad():
        score = fit.classifier(inputs[4000:])
    assert np.corrcoef(score, truth[4000:])[0, 1] > 0.97
    assert fit.curve[fit.best_epoch - 1]["select_loss"] == min(row["select_loss"] for row in fit.curve)


def test_a_fit_is_reproducible_and_says_when_it_did_not_converge():
    inputs, truth, noise = known_problem()
    args = ((inputs[:4000], truth[:4000] + noise[:4000]), (inputs[4000:], truth[4000:]), "gain", [8])
    one, two = (fit_classifier(*args, 1e-2, 256, 12, 3, 5) for _ in range(2))
    for name, value in one.classifier.state_dict().items():
        assert torch.equal(value, two.classifier.state_dict()[name])
    assert not fit_classifier(*args, 1e-5, 256, 2, 3, 5).converged


def test_classifier_flops_are_those_of_its_matrices():
    assert ExitClassifier(10, [6, 4]).flops == 2 * (10 * 6 + 6 * 4 + 4 * 1)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), tokens=st.integers(60, 400), ties=st.booleans())
def test_calibration_keeps_the_ranking_and_stays_a_probability(seed, tokens, ties):
    generator = np.random.default_rng(seed)
    raw = generator.normal(size=tokens).astype(np.float32)
    raw = np.round(raw, 1) if ties else raw
    agrees = generator.random(tokens) < 1 / (1 + np.exp(-2 * raw))
    confidence = fit_calibrator(raw, agrees)(torch.from_numpy(raw)).numpy()
    order = np.argsort(raw, kind="stable")
    assert (np.diff(confidence[order]) >= 0).all() and confidence.min() >= 0 and confidence.max() <= 1
    strictly = np.diff(raw[order]) > 1e-3
    assert (np.diff(confidence[order])[strictly] > 0).all()


def test_calibrated_confidence_means_what_it_says_on_fresh_tokens():
    generator = np.random.default_rng(0)
    raw = generator.normal(size=40_000).astype(np.float32)
    agrees = generator.random(40_000) < 0.2 + 0.6 / (1 + np.exp(-3 * raw))
    calibrator = fit_calibrator(raw[:20_000], agrees[:20_000])
    assert expected_calibration_error(calibrator(torch.from_numpy(raw[20_000:])).numpy(), agrees[20_000:]) < 0.02


def test_reliability_counts_every_token_once_and_ece_is_its_mean_gap():
    generator = np.random.default_rng(0)
    confidence, agrees = generator.random(1003), generator.random(1003) < 0.5
    rows = reliability(confidence, agrees, bins=10)
    assert sum(row["tokens"] for row in rows) == 1003
    gap = sum(row["tokens"] * abs(row["confidence"] - row["agreement"]) for row in rows) / 1003
    assert expected_calibration_error(confidence, agrees, bins=10) == pytest.approx(gap)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=4, max_size=60))
def test_auroc_equals_scikit_learn(pairs):
    score, positive = np.array([s for s, _ in pairs], float), np.array([p for _, p in pairs])
    if positive.all() or not positive.any():
        assert np.isnan(auroc(score, positive))
    else:
        assert auroc(score, positive) == pytest.approx(roc_auc_score(positive, score))


def test_loss_gap_and_most_confident():
    loss = np.array([1.0, 5.0, 2.0, 4.0])
    easy = most_confident(-loss, 2)
    assert easy.tolist() == [True, False, True, False] and loss_gap(easy, loss) == 3.0


def test_signals_are_oriented_towards_sureness():
    """A peaked distribution is surer than a flat one by every signal."""
    logits = torch.tensor([[8.0, 0.0, 0.0, -1.0], [0.3, 0.2, 0.1, 0.0]])
    p = logits.softmax(1)
    top = logits.topk(2).values
    statistics = {"max_prob": p.amax(1), "max_logit": top[:, 0], "mean_logit": logits.mean(1),
                  "margin": top[:, 0] - top[:, 1], "entropy": -(p * p.log()).sum(1)}
    for name in SIGNALS:
        peaked, flat = raw_signal(name, statistics)
        assert peaked > flat, name


def test_unknown_signal_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"sureness.*learned, max_prob"):
        raw_signal("sureness", {})


def test_calibration_documents_are_halved_without_overlap():
    documents = np.repeat(np.arange(7), 10)
    fitting = split_calibration(documents, seed=0)
    assert set(documents[fitting]).isdisjoint(documents[~fitting]) and len(set(documents[fitting])) == 3
    with pytest.raises(UserError, match=r"corpus\.calibration_fraction"):
        split_calibration(np.zeros(10), seed=0)
