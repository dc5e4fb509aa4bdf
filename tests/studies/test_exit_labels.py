"""The study exit_labels on a few thousand made-up words: every figure is there, and corrected flaws are
really gone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from studies.common.study import Outcome
from studies.exit_labels.study import ARMS, comparisons
from tests.fixtures.tiny_studies import (
    check_claims_find_their_keys,
    check_outcome,
    check_sentences_find_their_keys,
    run_tiny,
)
from tests.fixtures.word_chains import chain_text

pytestmark = pytest.mark.slow

NAME = "exit_labels"

BY_ARM = {
    "final_ppl",
    "accuracy",
    "shallow_ratio",
    "layer_saving",
    "flop_saving",
    "threshold",
    "executed_layer_saving",
    "ratio.final_over_block0",
    "ratio.final_over_block0_same_set",
}
OF_CLASSIFIERS = {"label_mean", "exit_loss_first", "exit_loss_last"}
ALONE = {
    "block0_val_ppl",
    "block0_heldout_ppl",
    "full_heldout_ppl",
    "exit_rate_drift.softmax",
    "ppl_ratio.loss_over_distill",
    "ppl_ratio.softmax_over_distill",
    "saving_gain.softmax_over_distill",
}


def keys(by_arm: set[str], alone: set[str]) -> set[str]:
    learned = {f"{name}.{arm}" for name in OF_CLASSIFIERS for arm in ARMS if arm != "softmax"}
    return alone | learned | {f"{name}.{arm}" for name in by_arm for arm in ARMS}


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def published(cache) -> Outcome:
    return run_tiny(NAME, chain_text(), "published", cache)


@pytest.fixture(scope="module")
def corrected(cache) -> Outcome:
    return run_tiny(NAME, chain_text(), "corrected", cache)


def test_outcomes_are_whole(published, corrected):
    check_outcome(published, 1)
    check_outcome(corrected, 2)
    assert keys(BY_ARM | {"block1_val_ppl"}, ALONE | {"block0_drift"}) <= set(published.rows[0])
    assert keys(BY_ARM | {"random_ppl"}, ALONE) == set(corrected.rows[0])
    assert [row["arm"] for row in published.figures["published_arms"]] == list(ARMS)
    assert len(corrected.figures["corrected_arms"]) == 2 * len(ARMS)


def test_claims_and_sentences_find_their_keys(published, corrected):
    check_claims_find_their_keys(NAME, published, corrected, claims=10)
    check_sentences_find_their_keys(NAME, published, corrected)


def test_random_seeds_give_different_models(corrected):
    assert corrected.rows[0]["final_ppl.distill"] != corrected.rows[1]["final_ppl.distill"]


def test_layers_saved_are_layers_the_executor_did_not_run(corrected):
    for row in corrected.rows:
        for arm in ARMS:
            assert row[f"executed_layer_saving.{arm}"] == pytest.approx(row[f"layer_saving.{arm}"])
            assert 0 < row[f"shallow_ratio.{arm}"] < 1
        assert row["flop_saving.softmax"] < row["flop_saving.distill"]  # it pays a readout to decide


@pytest.mark.parametrize("protocol", ["published", "corrected"])
def test_an_arm_alone_gives_the_values_it_has_among_others(protocol, published, corrected, cache):
    together = {"published": published, "corrected": corrected}[protocol].rows[0]
    alone = run_tiny(NAME, chain_text(), protocol, cache, arms=["loss"], seeds=[0]).rows[0]
    assert not any("distill" in key or "softmax" in key for key in alone)
    of_arm = [key for key in alone if key.endswith(".loss")]
    assert len(of_arm) >= len(BY_ARM) and {key: alone[key] for key in of_arm} == {
        key: together[key] for key in of_arm
    }


def test_comparisons_are_of_the_arms_final_numbers():
    values = {f"final_ppl.{arm}": ppl for arm, ppl in zip(ARMS, (100.0, 98.0, 111.0, 105.0))}
    values |= {
        "shallow_ratio.softmax": 0.728,
        "layer_saving.softmax": 0.364,
        "layer_saving.distill": 0.253,
        "block0_val_ppl": 50.0,
        "block0_heldout_ppl": 80.0,
    }
    out = comparisons(values, 0.5)
    assert out["ppl_ratio.loss_over_distill"] == pytest.approx(0.98)
    assert out["exit_rate_drift.softmax"] == pytest.approx(0.228)
    assert out["saving_gain.softmax_over_distill"] == pytest.approx(0.111)
    assert out["ratio.final_over_block0.distill"] == 2.0
    assert out["ratio.final_over_block0_same_set.distill"] == 1.25
    assert all(np.isfinite(value) for value in out.values())
