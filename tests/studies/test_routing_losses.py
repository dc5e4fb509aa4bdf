"""The study routing_losses, tiny: every figure that a claim needs is there, under both limits of training."""

from __future__ import annotations

import pytest

from studies.common.study import Outcome, study_of
from studies.common.text import StudyText, pangram_text, study_text
from tests.fixtures.tiny_studies import (
    ORACLE_SHARES,
    check_claims_find_their_keys,
    check_one_plot,
    check_outcome,
    check_sentences_find_their_keys,
    run_tiny,
)

pytestmark = pytest.mark.slow

NAME = "routing_losses"


@pytest.fixture(scope="module")
def text() -> StudyText:
    return study_text("sotu")


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Outcome:
    return run_tiny(NAME, pangram_text(), "published", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def corrected(text, tmp_path_factory) -> Outcome:
    return run_tiny(NAME, text, "corrected", tmp_path_factory.mktemp("cache"))


def test_outcomes_are_whole(published, corrected):
    check_outcome(published, 1, undefined=ORACLE_SHARES)
    check_outcome(corrected, 2, undefined=ORACLE_SHARES)
    check_one_plot(corrected)


def test_claims_and_sentences_find_their_keys(published, corrected):
    check_claims_find_their_keys(NAME, published, corrected, claims=30)
    check_sentences_find_their_keys(NAME, published, corrected)


def test_the_pangram_is_the_published_text_alone():
    assert study_of(NAME).protocols_on("pangram", ["published", "corrected"]) == ["published"]
    assert study_of(NAME).protocols_on("sotu", ["published", "corrected"]) == ["corrected"]


@pytest.mark.parametrize("size", ["20k", "500k"])
def test_every_figure_is_there_at_equal_updates_and_at_equal_flops(corrected, size):
    for row in corrected.rows:
        keys = {key.removeprefix(f"{size}.") for key in row if key.startswith(f"{size}.")}
        at_equal_flops = {key.removeprefix("flops.") for key in keys if key.startswith("flops.")}
        at_equal_updates = {key for key in keys if not key.startswith("flops.")}
        assert at_equal_flops == at_equal_updates != set()


def test_the_sweep_is_of_the_model_of_the_headline(corrected):
    for row in corrected.rows:
        assert row["20k.ppl.routed"] == row["20k.sweep.ppl.routed.0.8"]


def test_arms_can_run_alone(text, tmp_path):
    alone = run_tiny(NAME, text, "corrected", tmp_path, ["lpt"], seeds=[1])
    assert "20k.ppl.lpt" in alone.rows[0] and "20k.ppl.routed" not in alone.rows[0]
