"""Exit classifiers and calibration on states whose answer is known."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from offramp import vocabulary
from offramp.errors import UserError
from offramp.exits.calibration import (
    expected_calibration_error,
    fit_calibrator,
    reliability,
    resampled_calibration_error,
)
from offramp.exits.classifier import ExitClassifier
from offramp.exits.labels import KINDS
from offramp.exits.ranking import aurc, auroc, classification_quality, loss_gap, most_confident
from offramp.exits.signals import ORACLES, SIGNALS, known_signals, raw_signal
from offramp.training.exit_classifiers import fit_classifier
from offramp.training.exits import PARTS, split_calibration


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
        (inputs[:4000], labels[:4000]),
        (inputs[4000:], labels[4000:]),
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
    args = ((inputs[:4000], wanted[:4000]), (inputs[4000:], wanted[4000:]), "gain", [8])
    how = {"max_epochs": 6, "patience": 3, "seed": 5}
    one, two = (fit_classifier(*args, learning_rate=1e-2, batch_size=500, **how) for _ in range(2))
    for name, value in one.classifier.state_dict().items():
        assert torch.equal(value, two.classifier.state_dict()[name])
    few = how | {"max_epochs": 2}
    assert not fit_classifier(*args, learning_rate=1e-5, batch_size=256, **few).converged


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
    assert (
        expected_calibration_error(calibrator(torch.from_numpy(raw[20_000:])).numpy(), agrees[20_000:]) < 0.02
    )


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
    """A peaked distribution is surer than a flat one, a state that stopped surer than one that turns."""
    logits = torch.tensor([[8.0, 0.0, 0.0, -1.0], [0.3, 0.2, 0.1, 0.0]])
    p = logits.softmax(1)
    top = logits.topk(2).values
    statistics = {
        "max_prob": p.amax(1),
        "max_logit": top[:, 0],
        "mean_logit": logits.mean(1),
        "margin": top[:, 0] - top[:, 1],
        "entropy": -(p * p.log()).sum(1),
        "saturation": torch.tensor([0.99, 0.1]),
        "patience": torch.tensor([1.0, 0.0]),
    }
    for name in SIGNALS:
        peaked, flat = raw_signal(name, statistics)
        assert peaked > flat, name


def test_unknown_signal_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"sureness.*learned, max_prob"):
        raw_signal("sureness", {})


def test_an_oracle_is_refused_at_inference_and_a_missing_statistic_is_named():
    assert ORACLES["correct_prob"].needs_target and not any(
        signal.needs_target for signal in SIGNALS.values()
    )
    with pytest.raises(UserError, match=r"correct_prob.*needs the target.*max_prob"):
        raw_signal("correct_prob", {"correct_prob": np.ones(3)})
    with pytest.raises(UserError, match=r"margin_prob.*'max_prob'"):
        raw_signal("margin_prob", {"margin": np.ones(3)})


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), entries=st.integers(2, 30))
def test_the_probability_margin_is_the_difference_of_the_two_largest_probabilities(seed, entries):
    logits = torch.randn(5, entries, generator=torch.Generator().manual_seed(seed)) * 3
    p, top = logits.softmax(1).topk(2).values, logits.topk(2).values
    columns = {"max_prob": p[:, 0], "margin": top[:, 0] - top[:, 1]}
    torch.testing.assert_close(raw_signal("margin_prob", columns), p[:, 0] - p[:, 1], atol=1e-6, rtol=1e-4)
    arrays = {name: values.numpy() for name, values in columns.items()}
    np.testing.assert_allclose(raw_signal("margin_prob", arrays), p[:, 0] - p[:, 1], atol=1e-6, rtol=1e-4)


def test_what_a_signal_costs():
    """A readout, or the three inner products of a cosine."""
    assert SIGNALS["entropy"].flops(128, 1024) == 2 * 128 * 1024
    assert SIGNALS["saturation"].flops(128, 1024) == 6 * 128 and not SIGNALS["saturation"].reads_out


def test_the_parameters_know_the_same_signals_and_labels():
    assert set(vocabulary.SIGNALS) == {vocabulary.LEARNED, *SIGNALS}
    assert set(vocabulary.ORACLES) == set(ORACLES)
    assert set(get_args(vocabulary.Label)) == set(KINDS)
    assert "patience" not in known_signals(2) and "patience" in known_signals(3)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=40))
def test_aurc_is_the_mean_over_coverages_of_the_risk_of_the_covered(pairs):
    score, risk = np.array([s for s, _ in pairs], float), np.array([r for _, r in pairs])
    covered = [risk[most_confident(score, count)].mean() for count in range(1, len(pairs) + 1)]
    assert aurc(score, risk) == pytest.approx(np.mean(covered))


def test_classification_stands_beside_deciding_without_looking():
    """76 % accuracy, as in the report loss-prediction, is no feat where always saying "hard" gives 75 %."""
    positive = np.arange(1000) < 752
    always = classification_quality(np.ones(1000, bool), positive)
    assert always["accuracy"] == always["majority_accuracy"] == pytest.approx(0.752)
    assert (
        always["f1"] == always["majority_f1"] == pytest.approx(0.858, abs=1e-3)
        and always["balanced_accuracy"] == 0.5
    )
    assert classification_quality(positive, positive)["f1"] == 1.0


def test_a_temperature_calibrates_where_the_truth_is_logistic_and_keeps_the_ranking():
    generator = np.random.default_rng(0)
    raw = generator.normal(size=40_000).astype(np.float32)
    agrees = generator.random(40_000) < 1 / (1 + np.exp(-(2 * raw + 0.5)))
    calibrator = fit_calibrator(raw[:20_000], agrees[:20_000], "temperature")
    confidence = calibrator(torch.from_numpy(raw[20_000:])).numpy()
    assert expected_calibration_error(confidence, agrees[20_000:]) < 0.02
    assert auroc(confidence, agrees[20_000:]) == pytest.approx(auroc(raw[20_000:], agrees[20_000:]), abs=1e-3)
    assert confidence.min() > 0 and confidence.max() < 1


def test_resampled_calibration_errors_surround_the_estimate():
    generator = np.random.default_rng(0)
    confidence = generator.random(20_000)
    agrees = generator.random(20_000) < confidence * 0.8
    draws = resampled_calibration_error(confidence, agrees, np.arange(20_000) // 100, 300, 0)
    assert draws.min() < expected_calibration_error(confidence, agrees) < draws.max() and draws.std() < 0.01


def test_a_classifier_of_benefits_predicts_nats_to_every_later_exit():
    inputs, truth, noise = known_problem()
    wanted = torch.stack((2 + truth, 5 - truth), 1) + 0.1 * noise.unsqueeze(1)
    fit = fit_classifier(
        (inputs[:4000], wanted[:4000]),
        (inputs[4000:], wanted[4000:]),
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
        assert (
            np.corrcoef(fit.classifier(inputs[4000:]), truth[4000:])[0, 1] > 0.99
        )  # the last one: to full depth


@settings(max_examples=30, deadline=None)
@given(count=st.integers(2, 40), seed=st.integers(0, 100))
def test_calibration_documents_are_parted_without_overlap(count, seed):
    documents = np.repeat(np.arange(count) * 3, 10)
    part = split_calibration(documents, seed)
    found = {name: set(documents[part == place]) for place, name in enumerate(PARTS)}
    assert sum(map(len, found.values())) == count and len(found["fit"]) == count // 2
    assert 0 <= len(found["select"]) - len(found["guarantee"]) <= 1


def test_a_single_calibration_document_is_refused():
    with pytest.raises(UserError, match=r"corpus\.calibration_fraction"):
        split_calibration(np.zeros(10), seed=0)
