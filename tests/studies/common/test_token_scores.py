"""Tokens are read as they were written; splits and curves by a score are what they say."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.states.store import States
from studies.common.token_scores import SCORES, bars, correlation, read_tokens, risk_coverage, split
from tests.fixtures.states_by_rule import TOKENS, states_by_rule


@pytest.fixture(scope="module")
def states(tmp_path_factory) -> States:
    return states_by_rule(tmp_path_factory.mktemp("states") / "states", 1, 1)


def test_tokens_are_read_evenly_spaced_with_their_states(states):
    every, some = read_tokens(states), read_tokens(states, 100)
    rows = np.linspace(0, TOKENS - 1, 100).astype(int)
    assert np.array_equal(some.loss, every.loss[rows]) and torch.equal(some.hidden, every.hidden[rows])
    assert np.allclose(every.correct_prob, np.exp(-every.loss), atol=1e-6)


def test_more_tokens_than_there_are_is_all_of_them(states):
    assert len(read_tokens(states, 10 * TOKENS)) == TOKENS


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(4, 100))
def test_a_split_never_beats_the_oracle_of_its_own_size(seed, tokens):
    rng = np.random.default_rng(seed)
    loss, easy = rng.gamma(2.0, 2.0, tokens), rng.random(tokens) < 0.3
    sides = split(easy, loss)
    if 0 < easy.sum() < tokens:
        ranked = np.sort(loss)
        best = ranked[easy.sum() :].mean() - ranked[: easy.sum()].mean()
        assert sides["oracle_share"] == pytest.approx((loss[~easy].mean() - loss[easy].mean()) / best)
        assert sides["oracle_share"] <= 1 + 1e-9
    else:
        assert sides["gap"] is None


def test_risk_at_full_coverage_is_the_mean_loss_and_the_oracle_is_below_every_score(states):
    tokens = read_tokens(states)
    rows = risk_coverage({"oracle": -tokens.loss, **tokens.scores}, tokens.loss)
    risk = {(row["score"], row["coverage"]): row["loss"] for row in rows}
    for name in SCORES:
        assert risk[name, 1.0] == pytest.approx(tokens.loss.mean())
        assert risk["oracle", 0.2] <= risk[name, 0.2]


def test_a_constant_correlates_with_nothing():
    assert (
        correlation(np.ones(5), np.arange(5.0)) is None
        and correlation(np.arange(2.0), np.arange(2.0)) is None
    )


def test_a_side_without_tokens_has_no_bar():
    assert bars([("score", None, 2.0)]) == [{"score": "score", "side": "hard", "loss": 2.0}]
