"""The study inference_confidence: on a little made-up text, and on states whose loss is a known function of
the hidden state."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from studies.common.study import Outcome
from studies.common.token_scores import SCORES, read_tokens
from studies.inference_confidence.study import score_values
from tests.fixtures.states_by_rule import states_by_rule
from tests.fixtures.tiny_studies import (
    check_claims_find_their_keys,
    check_sentences_find_their_keys,
    run_tiny,
)
from tests.fixtures.word_chains import chain_text

pytestmark = pytest.mark.slow

NAME = "inference_confidence"

KEYS = {
    *(f"{s}.{m}" for s in SCORES for m in ["r", "mean", "std", "gap", "easy", "hard", "oracle_share"]),
    *(f"predict.{s}.{m}" for s in SCORES for m in ("r", "seconds")),
    *(f"subset.{t}.{m}" for t in (0.3, 0.5, 0.6, 0.7, 0.8, 0.9) for m in ("n", "share", *SCORES)),
    "subset.0.5.loss",
    "rest.0.5.loss",
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def published(cache) -> Outcome:
    return run_tiny(NAME, chain_text(), "published", cache)


@pytest.fixture(scope="module")
def corrected(cache) -> Outcome:
    return run_tiny(NAME, chain_text(), "corrected", cache)


def test_both_protocols_give_every_figure(published, corrected):
    assert len(published.rows) == 1 and len(corrected.rows) == 2
    for row in (*published.rows, *corrected.rows):
        assert set(row) >= KEYS
        assert all(value is None or math.isfinite(value) for value in row.values())
    for outcome, protocol in ((published, "published"), (corrected, "corrected")):
        for name in ("risk_coverage", "easy_hard"):
            assert outcome.figures[f"{name}.{protocol}"]


def test_claims_and_sentences_find_their_keys(published, corrected):
    check_claims_find_their_keys(NAME, published, corrected, claims=10)
    check_sentences_find_their_keys(NAME, published, corrected)


def test_an_arm_alone_gives_the_values_it_has_among_others(corrected, cache):
    alone = run_tiny(NAME, chain_text(), "corrected", cache, arms=["margin"], seeds=[0]).rows[0]
    assert not any("max_logit" in key for key in alone)
    timed = {key for key in alone if key.endswith("seconds")}
    assert timed == {"predict.margin.seconds"}
    assert {key: alone[key] for key in alone.keys() - timed} == {
        key: corrected.rows[0][key] for key in alone.keys() - timed
    }


def test_a_score_is_split_in_the_direction_that_the_reference_tokens_show(tmp_path):
    tokens = read_tokens(states_by_rule(tmp_path / "states", 1, 1))
    turned = replace(tokens, scores={name: -values for name, values in tokens.scores.items()})
    straight = score_values("max_prob", tokens, tokens)
    assert straight["max_prob.r"] < 0 < straight["max_prob.gap"]
    by_itself = score_values("max_prob", turned, turned)["max_prob.gap"]
    assert by_itself == pytest.approx(straight["max_prob.gap"])
    assert score_values("max_prob", turned, tokens)["max_prob.gap"] < 0
