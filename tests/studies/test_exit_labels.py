"""The study exit_labels on a few thousand made-up words: every figure is there, and corrected flaws are
really gone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from studies.common.study import Outcome
from studies.exit_labels.published import REPORT_ARMS, leaving_values
from studies.exit_labels.study import ARMS, attained, comparisons, random_nll
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
    "leaver_error",
    "leaver_auc",
    "kept_oracle_share",
    "block1_val_ppl",
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


def keys(by_arm: set[str], alone: set[str], arms: Sequence[str]) -> set[str]:
    learned = {f"{name}.{arm}" for name in OF_CLASSIFIERS for arm in arms if arm != "softmax"}
    return alone | learned | {f"{name}.{arm}" for name in by_arm for arm in arms}


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
    alone = ALONE | {"block0_drift"}
    assert keys(BY_ARM, alone, REPORT_ARMS) <= set(published.rows[0])
    assert keys(BY_ARM | {"random_ppl", "attained"}, ALONE, ARMS) == set(corrected.rows[0])
    assert [row["arm"] for row in published.figures["published_arms"]] == list(REPORT_ARMS)
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


def test_an_arm_that_the_report_does_not_have_has_no_published_values(cache):
    assert not run_tiny(NAME, chain_text(), "published", cache, arms=["correct"]).rows


def test_random_exits_are_an_expectation_and_a_signal_stands_between_them_and_the_divergence_oracle():
    shallow, deep = np.array([4.0, 1.0, 3.0, 8.0]), np.array([1.0, 1.0, 1.0, 1.0])
    columns = {"loss_0": shallow, "loss_1": deep}
    test = SimpleNamespace(column=columns.__getitem__, divergence=lambda exit: shallow - deep)
    assert random_nll(test, 0.5) == pytest.approx(0.5 * 4 + 0.5 * 1)
    assert attained(test, -shallow, 2) == 1.0
    assert attained(test, shallow, 2) < 0
    assert attained(test, np.array([1.0, 0.0, 0.0, 0.0]), 1) == pytest.approx(
        0.0
    )  # gains what the mean gains


def test_what_leaving_tokens_are_like():
    right = np.array([True, True, False, False, True, False])
    sure = np.array([0.9, 0.8, 0.7, 0.6, 0.2, 0.1])
    loss = np.array([1.0, 2.0, 3.0, 4.0, 5.0, 9.0])
    out = leaving_values(sure, 0.5, loss, right)
    assert out == {"leaver_error": 0.5, "leaver_auc": 1.0, "kept_oracle_share": 1.0}
    assert leaving_values(sure, 0.5, loss, ~right)["leaver_auc"] == 0.0
    assert leaving_values(sure, 0.5, loss[::-1], right)["kept_oracle_share"] < 0
    blind = leaving_values(np.array([0.7, 0.7, 0.7, 0.7, 0.2, 0.2]), 0.5, loss, right)
    assert blind["leaver_auc"] == 0.5


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
