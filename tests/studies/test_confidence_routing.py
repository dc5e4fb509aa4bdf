"""The study confidence_routing, tiny: every figure that a claim needs is there, and arms can run alone."""

from __future__ import annotations

from pathlib import Path

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

NAME = "confidence_routing"


@pytest.fixture(scope="module")
def text() -> StudyText:
    return study_text("sotu")


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Outcome:
    return run_tiny(NAME, pangram_text(), "published", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def corrected(text, cache) -> Outcome:
    return run_tiny(NAME, text, "corrected", cache)


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


def test_arms_can_run_alone(text, tmp_path):
    alone = run_tiny(NAME, text, "corrected", tmp_path, ["two_layers"], seeds=[1])
    named = {
        key.removeprefix("20k.").removeprefix("flops.") for key in alone.rows[0] if key.startswith("20k.")
    }
    assert named == {
        f"{name}.two_layers"
        for name in ("ppl", "accuracy", "executed", "updates", "best_epoch", "parameters", "compute")
    }
    assert alone.figures == {}


@pytest.mark.usefixtures("corrected")
def test_models_of_both_studies_of_routing_are_trained_on_the_way(cache):
    kept = {path.name for path in (cache / "layered_models/routing").iterdir()}
    assert {"20k.routed", "20k.lpt", "20k.routing_aware", "20k.two_layers"} <= kept
