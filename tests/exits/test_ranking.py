"""What a ranking of tokens is worth, against definitions written out and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from offramp.exits.ranking import aurc, auroc, classification_quality, loss_gap, most_confident


def test_loss_gap_and_most_confident():
    loss = np.array([1.0, 5.0, 2.0, 4.0])
    easy = most_confident(-loss, 2)
    assert easy.tolist() == [True, False, True, False] and loss_gap(easy, loss) == 3.0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=4, max_size=60))
def test_auroc_equals_scikit_learn(pairs):
    score, positive = np.array([s for s, _ in pairs], float), np.array([p for _, p in pairs])
    if positive.all() or not positive.any():
        assert np.isnan(auroc(score, positive))
    else:
        assert auroc(score, positive) == pytest.approx(roc_auc_score(positive, score))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=40))
def test_aurc_is_the_mean_over_coverages_of_the_risk_of_the_covered(pairs):
    score, risk = np.array([s for s, _ in pairs], float), np.array([r for _, r in pairs])
    covered = [risk[most_confident(score, count)].mean() for count in range(1, len(pairs) + 1)]
    assert aurc(score, risk) == pytest.approx(np.mean(covered))


def test_classification_stands_beside_deciding_without_looking():
    """76 % accuracy, as in the report loss-prediction, is no feat where always saying "hard" gives 75 %."""
    positive = np.arange(1000) < 752
    always = classification_quality(np.ones(1000, bool), positive)
    assert always["accuracy"] == always["majority_accuracy"] == pytest.approx(0.752)
    assert (
        always["f1"] == always["majority_f1"] == pytest.approx(0.858, abs=1e-3)
        and always["balanced_accuracy"] == 0.5
    )
    assert classification_quality(positive, positive)["f1"] == 1.0
