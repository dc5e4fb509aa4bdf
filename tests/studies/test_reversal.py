"""The study reversal on a dozen addresses: every figure that a claim needs is there, and controls are
controls."""

from __future__ import annotations

import pytest

from studies.common.study import Outcome
from studies.common.text import StudyText, study_text
from studies.reversal.study import ARMS, trained_half
from tests.fixtures.tiny_studies import (
    check_claims_find_their_keys,
    check_one_plot,
    check_outcome,
    check_sentences_find_their_keys,
    run_tiny,
)

pytestmark = pytest.mark.slow

NAME = "reversal"


@pytest.fixture(scope="module")
def text() -> StudyText:
    return study_text("sotu")


@pytest.fixture(scope="module")
def published(text, tmp_path_factory) -> Outcome:
    return run_tiny(NAME, text, "published", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def corrected(text, tmp_path_factory) -> Outcome:
    return run_tiny(NAME, text, "corrected", tmp_path_factory.mktemp("cache"))


def test_outcomes_are_whole(published, corrected):
    check_outcome(published, 1)
    check_outcome(corrected, 2)
    check_one_plot(corrected)


def test_claims_and_sentences_find_their_keys(published, corrected):
    check_claims_find_their_keys(NAME, published, corrected, claims=10)
    check_sentences_find_their_keys(NAME, published, corrected)


def test_arms_without_facts_and_with_both_directions_are_controls(corrected):
    assert {row["arm"] for row in corrected.figures["over_facts"]["rows"]} == set(ARMS)
    for row in corrected.rows:
        expected = row["gap.ordinary"] - row["control_gap.ordinary"]
        assert row["reversal.ordinary"] == pytest.approx(expected)


def test_every_fact_is_trained_in_one_half_of_the_seeds():
    even, odd = (trained_half(40, seed) for seed in (0, 1))
    assert (even != odd).all() and even.sum() == 20


def test_one_random_seed_can_run_alone(text, corrected, tmp_path):
    alone = run_tiny(NAME, text, "corrected", tmp_path, ["ordinary"], seeds=[1])
    assert alone.rows[0]["reversal.ordinary"] == corrected.rows[1]["reversal.ordinary"]
