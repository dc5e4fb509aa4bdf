"""The study context_scaling on a dozen addresses: every figure that claims need, and texts that are
compared fairly."""

from __future__ import annotations

import pytest
import torch

from offramp.errors import UserError
from studies.common.context_models import ContextText, pieces_stream
from studies.common.study import Outcome
from studies.common.text import StudyText, study_text
from studies.context_scaling.study import WINDOW, amounts_of, law_values, rank_values, windows
from tests.fixtures.tiny_studies import (
    check_claims_find_their_keys,
    check_one_plot,
    check_outcome,
    check_sentences_find_their_keys,
    run_tiny,
)

pytestmark = pytest.mark.slow

NAME = "context_scaling"


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
    alone = run_tiny(NAME, text, "corrected", tmp_path, ["transformer"], seeds=[1])
    assert alone.rows[0]["alpha.transformer"] == corrected.rows[1]["alpha.transformer"]


def test_the_report_had_no_transformer(text, tmp_path):
    assert run_tiny(NAME, text, "published", tmp_path, ["transformer"]).rows == []


def test_training_on_after_the_stop_says_what_stopping_cost(published):
    row = published.rows[0]
    for place in range(1, 5):
        assert row[f"patience_cost.first.{place}"] >= 0
        assert row[f"epoch.first.{place}"] <= row[f"epochs.first.{place}"] <= 2


def test_the_reports_own_figures_have_its_law():
    tokens, ppl = [56_602, 110_516, 216_119, 529_173], [1503.3, 1036.3, 757.7, 536.0]
    law = law_values(tokens, ppl, [0.099, 0.137, 0.176, 0.154])
    assert (round(law["alpha"], 3), round(law["r2"], 3)) == (-0.459, 0.993)
    assert round(law["doubling_fall"], 2) == 0.27
    assert law["last_step.accuracy"] == pytest.approx(-0.022) and law["last_step.nll"] < -0.3


def test_ranks_that_vary_are_told_from_those_that_follow_the_loss():
    """The report's own ranks vary by a tenth of themselves and are not correlated with ln PPL."""
    ranks = rank_values([0.085, 0.078, 0.084, 0.086], [1503.3, 1036.3, 757.7, 536.0])
    assert ranks["rank_variation"] == pytest.approx(0.008 / 0.08325)
    assert abs(ranks["rank_correlation"]) < 0.5
    assert rank_values([0.1, 0.2, 0.4], [8.0, 4.0, 1.0])["rank_correlation"] == pytest.approx(-1, abs=0.05)
    assert rank_values([0.1, 0.1, 0.1], [8.0, 4.0, 1.0]) == {"rank_variation": 0, "rank_correlation": 0}


def pieces(count: int) -> ContextText:
    """A text of so many training pieces of a window and a half, made of their numbers."""
    length = WINDOW + WINDOW // 2
    numbers = torch.arange(count * length).view(count, length)
    return ContextText(torch.zeros(1, 1), torch.zeros(0), {"train": numbers})


def test_amounts_double():
    assert amounts_of(pieces(8), 8, 4) == [1, 2, 4, 8]
    assert amounts_of(pieces(8), 4, 3) == [1, 2, 4]
    with pytest.raises(UserError, match="8 training pieces do not make 6 amounts"):
        amounts_of(pieces(8), 32, 6)


def test_the_transformer_is_judged_on_the_targets_of_the_context_models():
    train = pieces(2).pieces["train"]
    tokens, targets = windows(pieces_stream(train))
    assert tokens.shape == (2, WINDOW)
    assert torch.equal(tokens[0], train[0, :WINDOW]) and torch.equal(targets[1], train[1, 1 : WINDOW + 1])
