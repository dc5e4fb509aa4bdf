"""Calibrated confidences are probabilities, keep the ranking, and their error is measured right."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.exits.calibration import (
    expected_calibration_error,
    fit_calibrator,
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
