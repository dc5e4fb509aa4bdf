"""Calibrated confidences are probabilities, keep the ranking, and their error is measured right.

Predicted benefits become gains by the slope that full depth's miscalibration makes.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.exits.calibration import (
    expected_calibration_error,
    fit_calibrator,
    gain_slope,
    reliability,
    resampled_calibration_error,
)
from offramp.exits.ranking import auroc


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


def test_a_temperature_calibrates_where_the_truth_is_logistic_and_keeps_the_ranking():
    generator = np.random.default_rng(0)
    raw = generator.normal(size=40_000).astype(np.float32)
    agrees = generator.random(40_000) < 1 / (1 + np.exp(-(2 * raw + 0.5)))
    calibrator = fit_calibrator(raw[:20_000], agrees[:20_000], "temperature")
    confidence = calibrator(torch.from_numpy(raw[20_000:])).numpy()
    assert expected_calibration_error(confidence, agrees[20_000:]) < 0.02
    assert auroc(confidence, agrees[20_000:]) == pytest.approx(auroc(raw[20_000:], agrees[20_000:]), abs=1e-3)
    assert confidence.min() > 0 and confidence.max() < 1


def test_reliability_counts_every_token_once_and_ece_is_its_mean_gap():
    generator = np.random.default_rng(0)
    confidence, agrees = generator.random(1003), generator.random(1003) < 0.5
    rows = reliability(confidence, agrees, bins=10)
    assert sum(row["tokens"] for row in rows) == 1003
    gap = sum(row["tokens"] * abs(row["confidence"] - row["agreement"]) for row in rows) / 1003
    assert expected_calibration_error(confidence, agrees, bins=10) == pytest.approx(gap)


def test_resampled_calibration_errors_surround_the_estimate():
    generator = np.random.default_rng(0)
    confidence = generator.random(20_000)
    agrees = generator.random(20_000) < confidence * 0.8
    draws = resampled_calibration_error(confidence, agrees, np.arange(20_000) // 100, 300, 0)
    assert draws.min() < expected_calibration_error(confidence, agrees) < draws.max() and draws.std() < 0.01


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000), tokens=st.integers(8, 200), factor=st.floats(0.1, 10))
def test_no_other_multiple_of_the_prediction_is_nearer_to_the_gain(seed, tokens, factor):
    generator = np.random.default_rng(seed)
    predicted, documents = generator.gamma(1.0, 0.3, tokens), np.arange(tokens) // 4
    gain = 1.3 * predicted + generator.normal(0, 0.5, tokens)
    slope, (low, high) = gain_slope(predicted, gain, documents, draws=200, seed=0)

    def distance(multiple):
        return ((gain - multiple * predicted) ** 2).sum()

    assert distance(slope) < min(distance(slope - 1e-3), distance(slope + 1e-3))
    assert low < high
    assert gain_slope(predicted, factor * gain, documents, 1, 0)[0] == pytest.approx(factor * slope)
    assert gain_slope(factor * predicted, gain, documents, 1, 0)[0] == pytest.approx(slope / factor)


def test_where_nothing_is_predicted_there_is_nothing_to_multiply_and_one_document_has_no_interval():
    nothing, gain = np.zeros(6), np.arange(6.0)
    assert gain_slope(nothing, gain, np.arange(6), 10, 0) == (1.0, None)
    assert gain_slope(gain, 2 * gain, np.zeros(6), 10, 0) == (2.0, None)
    slope, (low, high) = gain_slope(np.array([0, 0, 1, 2.0]), np.ones(4), np.array([0, 0, 1, 2]), 100, 0)
    assert slope == pytest.approx(0.6) and low == 0.5 and high == 1.0  # draws of document 0 alone say nothing


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 2.0])
def test_the_slope_is_what_the_miscalibration_of_full_depth_makes_it(sharpness):
    """Tokens of two outcomes: the exit knows nothing, full depth is the truth made sharper or softer."""
    generator, tokens = np.random.default_rng(0), 200_000
    logit = generator.normal(0, 2, tokens)
    truth, full = 1 / (1 + np.exp(-logit)), 1 / (1 + np.exp(-sharpness * logit))

    def expected(probability):
        """Gain of full depth over one half, in nats, if outcomes have that probability."""
        return probability * np.log(2 * full) + (1 - probability) * np.log(2 * (1 - full))

    divergence = expected(full)
    gain = np.log(2 * np.where(generator.random(tokens) < truth, full, 1 - full))
    known = (divergence * expected(truth)).sum() / (divergence**2).sum()
    slope, (low, high) = gain_slope(divergence, gain, np.arange(tokens) // 500, draws=500, seed=0)
    assert low < known < high and slope == pytest.approx(known, abs=0.02)
    assert {0.5: known > 1.5, 1.0: known == pytest.approx(1), 2.0: known < 0.7}[sharpness]
