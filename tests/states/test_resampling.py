"""Bootstrap over documents."""

from __future__ import annotations

import numpy as np
import pytest

from offramp.states.resampling import GroupSums, interval


def test_draws_equal_resampling_the_tokens_themselves():
    generator = np.random.default_rng(0)
    documents, values = generator.integers(0, 5, 200), generator.normal(size=200)
    draws = GroupSums(documents, {"x": values}).resample(50, seed=3)["x"]
    times = np.random.default_rng(3).multinomial(5, np.full(5, 0.2), size=50)
    for draw, counts in zip(draws, times):
        tokens = np.concatenate([np.tile(values[documents == d], n) for d, n in enumerate(counts)])
        assert draw == pytest.approx(tokens.mean())


def test_interval_covers_the_mean_about_as_often_as_promised():
    """Tokens of a document share an effect: intervals over documents cover, over tokens they would not."""
    generator, covered = np.random.default_rng(1), 0
    for trial in range(200):
        effect = generator.normal(size=30)
        documents = np.repeat(np.arange(30), 40)
        values = effect[documents] + generator.normal(size=1200)
        low, high = interval(GroupSums(documents, {"x": values}).resample(400, trial)["x"])
        covered += low <= 0 <= high
    assert 0.87 < covered / 200 < 0.99


def test_pairs_share_their_draws():
    documents = np.repeat(np.arange(4), 5)
    values = np.random.default_rng(0).normal(size=20)
    draws = GroupSums(documents, {"a": values, "b": values + 1}).resample(30, seed=0)
    np.testing.assert_allclose(draws["b"] - draws["a"], 1)


def test_undefined_statistics_have_no_interval():
    assert interval(np.full(10, np.nan)) is None
