"""The study loss_prediction: on a little made-up text, and on states whose loss is a known function of the
hidden state."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from studies.common.study import Job, Outcome
from studies.common.token_scores import read_tokens
from studies.loss_prediction.study import (
    ARMS,
    antimode_depth,
    classification_values,
    cohens_d,
    gaussian_d,
    loss_shape,
    modes,
    published_values,
    unseen_shares,
)
from tests.fixtures.states_by_rule import VOCABULARY, states_by_rule
from tests.fixtures.tiny_studies import (
    check_claims_find_their_keys,
    check_sentences_find_their_keys,
    run_tiny,
    tiny_job,
)
from tests.fixtures.word_chains import chain_text

pytestmark = pytest.mark.slow

NAME = "loss_prediction"

KEYS = {
    *[
        "loss_mean",
        "loss_std",
        "loss_min",
        "loss_max",
        "loss_q25",
        "loss_median",
        "loss_q75",
        "best_val_ppl",
        "oracle_easy",
        "oracle_hard",
        "oracle_gap",
        "oracle_d",
        "gaussian_d",
        "dip_p",
        "bic_gain",
        "worse_than_uniform",
        "two_modes",
        "median_over_quartiles",
        "unseen_target_share",
        "unseen_target_share_above14",
        "report_linear.r",
        "report_linear.std",
        "report_linear.std_share",
        "report_linear.share_of_median_gap",
        "report_linear.two_modes",
        "report_linear.gap",
        "report_linear.oracle_share",
        "correct_prob.r",
        "correct_prob.gap",
        "correct_prob.oracle_share",
    ],
    *(
        f"regress.{c}.{m}"
        for c in ("linear", "mlp2", "mlp3", "wide")
        for m in ["mse", "r", "r2", "std_share", "two_modes", "gap", "oracle_share"]
    ),
    *(
        f"classify.{c}.{m}"
        for c in ("linear", "mlp2", "mlp3", "wide")
        for m in [
            "accuracy",
            "f1",
            "easy",
            "hard",
            "gap",
            "easy_fraction",
            "oracle_share",
            "half_oracle_share",
            "majority_accuracy",
            "majority_f1",
        ]
    ),
    *(f"correct_prob.t{t}.{m}" for t in ("0.01", "0.02", "0.05") for m in ("share", "easy", "hard")),
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def published(cache) -> Outcome:
    return run_tiny(NAME, chain_text(), "published", cache)


@pytest.fixture(scope="module")
def corrected(cache) -> Outcome:
    return run_tiny(NAME, chain_text(), "corrected", cache)


@pytest.fixture(scope="module")
def predicted(tmp_path_factory) -> dict[str, float | None]:
    """What the published protocol makes of states by rule."""
    folder = tmp_path_factory.mktemp("states")
    validation, train = (states_by_rule(folder / str(seed), seed, 1) for seed in (1, 2))
    job: Job = tiny_job(NAME, chain_text(), "published", folder)
    quick = job.settings | {
        "easy_loss": 3.0,
        "published": job.settings["published"] | {"max_epochs": 6, "batch_size": 256},
    }
    return published_values(validation, train, quick, tuple(ARMS))[0]


def test_both_protocols_give_every_figure(published, corrected):
    assert len(published.rows) == 1 and len(corrected.rows) == 2
    for row in (*published.rows, *corrected.rows):
        assert set(row) >= KEYS
        assert all(value is None or math.isfinite(value) for value in row.values())
    for outcome, protocol in ((published, "published"), (corrected, "corrected")):
        for name in ("loss_histogram", "risk_coverage", "easy_hard"):
            assert outcome.figures[f"{name}.{protocol}"]


def test_claims_and_sentences_find_their_keys(published, corrected):
    check_claims_find_their_keys(NAME, published, corrected, claims=10)
    check_sentences_find_their_keys(NAME, published, corrected)


def test_an_arm_alone_gives_the_values_it_has_among_others(corrected, cache):
    alone = run_tiny(NAME, chain_text(), "corrected", cache, arms=["mlp2"], seeds=[0]).rows[0]
    assert not any("mlp3" in key for key in alone)
    assert alone == {key: corrected.rows[0][key] for key in alone}


def test_the_probability_of_the_correct_token_is_the_oracle_by_identity(predicted):
    """p(correct) = exp(-loss), so it ranks tokens as their loss does, though its correlation is far from
    -1."""
    assert predicted["correct_prob.oracle_share"] == 1.0
    assert predicted["correct_prob.gap"] == predicted["oracle_gap"]
    assert -0.9 < predicted["correct_prob.r"] < 0


def test_converged_linear_fit_beats_the_reports_fifty_steps(predicted):
    """Where hardness is linear in the state, more steps find it."""
    assert predicted["regress.linear.r"] > predicted["report_linear.r"] + 0.02
    assert predicted["regress.linear.r2"] > 0


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(10, 200), st.floats(0.1, 6))
def test_always_answering_hard_scores_what_the_closed_form_says(seed, tokens, threshold):
    """Accuracy p and F1 2p / (1 + p) of a share p of hard tokens: the report's 75.2 % and .858."""
    loss = np.random.default_rng(seed).gamma(2.0, 2.0, tokens)
    hard = loss > threshold
    share = hard.mean()
    values = classification_values(np.full(tokens, -1.0), loss, threshold, 1.0)
    assert values["accuracy"] == pytest.approx(share)
    assert values["f1"] == values["majority_f1"] == pytest.approx(2 * share / (1 + share))
    assert values["gap"] is None and values["oracle_share"] is None
    assert values["majority_accuracy"] == pytest.approx(max(share, 1 - share))


def test_the_reports_figures_are_those_of_always_answering_hard():
    share = 0.752
    assert 2 * share / (1 + share) == pytest.approx(0.858, abs=5e-4)


def test_f1_is_that_of_hard_tokens():
    rng = np.random.default_rng(0)
    loss, log_odds = rng.gamma(2.0, 2.0, 500), rng.normal(size=500)
    values = classification_values(log_odds, loss, 3.0, 1.0)["f1"]
    assert values == pytest.approx(f1_score(loss > 3.0, log_odds <= 0))


def test_a_normal_distribution_split_at_its_median_is_as_far_apart_as_the_reports_modes():
    """The d of a median split is large for any distribution."""
    assert gaussian_d() == pytest.approx(2.65, abs=5e-3)
    drawn = np.sort(np.random.default_rng(0).normal(size=200_000))
    values = cohens_d(drawn[100_000:], drawn[:100_000])
    assert values == pytest.approx(gaussian_d(), rel=0.01)


def test_tests_of_bimodality_tell_two_modes_from_one():
    rng = np.random.default_rng(0)
    one, two = rng.gamma(9.0, 0.7, 4000), np.concatenate([rng.normal(3, 0.5, 2000), rng.normal(9, 0.5, 2000)])
    assert loss_shape(one, VOCABULARY)["dip_p"] > 0.1
    values = loss_shape(np.abs(two), VOCABULARY)
    assert values["dip_p"] < 0.01 and values["dip"] > 0.05 and values["bic_gain"] > 1000
    assert values["two_modes"] > 0.9 and values["median_over_quartiles"] < 0.1
    assert values["worse_than_uniform"] == pytest.approx((two > math.log(VOCABULARY)).mean())


@pytest.mark.parametrize("shape", ["normal", "uniform", "exponential", "heavy"])
def test_a_distribution_with_one_mode_has_no_two_modes(shape):
    """A uniform one has a Cohen's d of 3.46 between its halves; single far values are no second mode."""
    rng = np.random.default_rng(1)
    values = {
        "normal": rng.normal(6, 3, 20_000),
        "uniform": rng.uniform(0, 12, 20_000),
        "exponential": rng.exponential(3, 20_000),
        "heavy": rng.standard_t(2, 20_000),
    }[shape]
    out = modes(values)
    assert out["two_modes"] == 0
    assert out["median_over_quartiles"] > 0.95
    if shape == "uniform":
        half = np.sort(values)
        assert cohens_d(half[10_000:], half[:10_000]) == pytest.approx(2 * math.sqrt(3), rel=0.01)


def test_a_lump_that_the_dip_test_sees_is_not_yet_two_modes():
    """Among many values p is small for a ripple, while the depth of its valley is, too."""
    rng = np.random.default_rng(2)
    values = np.concatenate([rng.normal(4, 2, 42_000), rng.normal(8.35, 1.6, 28_000)])
    out = modes(values)
    assert out["dip_p"] < 0.01 and 0 < out["two_modes"] < 0.1


def test_depth_is_that_of_the_density_of_two_normals():
    rng = np.random.default_rng(3)
    values = np.concatenate([rng.normal(3, 1.5, 100_000), rng.normal(9, 1.5, 100_000)])

    def height(at: float) -> float:
        return math.exp(-(((at - 3) / 1.5) ** 2) / 2) + math.exp(-(((at - 9) / 1.5) ** 2) / 2)

    assert antimode_depth(values) == pytest.approx(1 - height(6) / height(3), abs=0.06)


def test_the_half_of_a_classifier_is_its_surest_half():
    loss = np.arange(1.0, 9.0)
    values = classification_values(np.where(loss > 2, -loss, 1.0), loss, 2.0, 4.0)
    assert values["half_oracle_share"] == pytest.approx(1.0) and values["easy_fraction"] == 0.25


def test_unseen_targets_are_counted_among_all_tokens_and_among_the_worst(tmp_path):
    tokens = read_tokens(states_by_rule(tmp_path / "states", 11, 2))
    values = unseen_shares(tokens, np.arange(40), 6.0)
    assert values["unseen_target_share"] == pytest.approx((tokens.target >= 40).mean())
    assert values["unseen_target_share_above6"] == pytest.approx(
        (tokens.target[tokens.loss > 6.0] >= 40).mean()
    )
