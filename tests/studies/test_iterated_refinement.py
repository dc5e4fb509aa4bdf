"""The study iterated_refinement at tiny settings."""

from __future__ import annotations

import math

import pytest

from studies.common.study import Outcome
from studies.common.text import StudyText, text_of
from studies.iterated_refinement.study import ARMS, PAIRS, build
from tests.fixtures.character_texts import own_words
from tests.fixtures.tiny_studies import (
    check_claims_find_their_keys,
    check_one_plot,
    check_outcome,
    check_sentences_find_their_keys,
    run_tiny,
)

pytestmark = pytest.mark.slow

NAME = "iterated_refinement"


@pytest.fixture(scope="module")
def text() -> StudyText:
    return text_of("sotu")


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
    check_claims_find_their_keys(NAME, published, corrected, 10)
    check_sentences_find_their_keys(NAME, published, corrected)


def test_differences_are_logarithms_of_ratios_of_perplexities(corrected):
    for row in corrected.rows:
        for one, other in PAIRS:
            ratio = row[f"20k.ppl.{one}"] / row[f"20k.ppl.{other}"]
            assert row[f"20k.diff.{one}_minus_{other}"] == pytest.approx(math.log(ratio), abs=1e-9)


def test_an_arm_does_not_depend_on_its_company_or_the_other_random_seeds(text, corrected, tmp_path):
    alone = run_tiny(NAME, text, "corrected", tmp_path, ["irt"], (0,)).rows[0]
    assert alone["20k.ppl.irt"] == pytest.approx(corrected.rows[0]["20k.ppl.irt"], rel=1e-6)


def test_text_of_ones_own_is_one_size(tmp_path):
    (row, _) = run_tiny(NAME, own_words([1_025], 192, 192), "corrected", tmp_path, ["standard", "irt"]).rows
    assert {key.partition(".")[0] for key in row} == {"own"}


def test_every_arm_has_a_curve_on_every_size(corrected):
    curves = {(row[0], row[1]) for row in corrected.figures["learning_curves"]["rows"]}
    assert curves == {(f"{size} characters", arm) for size in ("20k", "500k") for arm in ARMS}


@pytest.mark.parametrize(("arm", "count"), [("standard", 78_080), ("irt", 82_176), ("hrm_published", 89_472)])
def test_parameters_are_the_published_ones(arm, count):
    assert sum(weight.numel() for weight in build(arm, 97)(0).parameters()) == count
