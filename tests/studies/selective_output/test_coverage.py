"""Risk and coverage of a model that may keep silent, and what its skipped steps buy, on numbers that can be
checked by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.errors import UserError
from offramp.systems.selective_output.model import SelectiveConfig, SelectiveLM
from studies.selective_output.coverage import (
    attempt_statistics,
    coverage_curves,
    gate_figures,
    place_nll,
    skipping_nll,
    spoken_nll,
)

NLL = np.array([[4.0, 1.0, 3.0, 2.0], [1.0, 1.5, 3.0, 0.0]])
SCORE = np.array([0.1, 0.9, 0.2, 0.8])


def test_what_is_spoken_is_what_scores_highest():
    assert spoken_nll(SCORE, NLL[0], 0.5) == 1.5
    assert spoken_nll(SCORE, NLL[0], 0.75) == 2.0
    assert spoken_nll(SCORE, NLL[0], 1) == 2.5
    assert spoken_nll(np.zeros(4), NLL[0], 0.25) == 2.5  # equal scores choose nothing


def test_skipped_steps_are_taken_where_the_score_is_lowest():
    assert skipping_nll(SCORE, NLL, 0) == 2.5
    assert skipping_nll(SCORE, NLL, 0.25) == (1 + 1 + 3 + 2) / 4
    assert skipping_nll(SCORE, NLL, 0.5) == (1 + 1 + 3 + 2) / 4
    assert skipping_nll(NLL[1] - NLL[0], NLL, 0.5) == (1 + 1 + 3 + 0) / 4  # with hindsight


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0, 9), min_size=4, max_size=20), st.integers(1, 3))
def test_hindsight_is_the_best_and_its_opposite_the_worst(losses, quarters):
    nll = np.array(losses)
    best, worst = spoken_nll(-nll, nll, quarters / 4), spoken_nll(nll, nll, quarters / 4)
    chosen = spoken_nll(np.random.default_rng(0).random(len(nll)), nll, quarters / 4)
    assert best <= chosen + 1e-9 and chosen <= worst + 1e-9


def test_curves_and_gates():
    curves = coverage_curves({"s": SCORE}, NLL[0], [0.5, 1.0])
    assert curves == {"s": {0.5: pytest.approx(math.exp(1.5)), 1.0: pytest.approx(math.exp(2.5))}}
    figures = gate_figures(SCORE, -SCORE)
    assert figures["gate_entropy_r"] == pytest.approx(-1)
    assert (figures["gate_min"], figures["gate_max"]) == (0.1, 0.9)
    assert figures["gate_mean"] == 0.5


def test_losses_by_place():
    assert place_nll(NLL[0], np.array([0, 1, 0, 1]), [0, 1, 2]) == [3.5, 1.5]
    with pytest.raises(UserError, match="edges: no token has a place from 2 to 7; the longest window has 2"):
        place_nll(NLL[0], np.array([0, 1, 0, 1]), [0, 2, 8])


def test_every_attempt_is_looked_at():
    torch.manual_seed(0)
    model = SelectiveLM(
        SelectiveConfig(11, 6, width=16, layers=1, heads=2, ffn_width=16, gate_width=8, rotary_share=0.5)
    )
    text = torch.randint(11, (40, 7))
    tokens, targets = text[:, :-1], text[:, 1:]
    statistics = attempt_statistics(model, tokens, targets, 2)
    with torch.no_grad():
        for attempt, h in enumerate(model.attempts(tokens, 2)):
            logits = model.head(h)
            nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
            np.testing.assert_allclose(statistics.nll[attempt], nll, atol=1e-5)
            entropy = torch.distributions.Categorical(logits=logits).entropy().flatten()
            np.testing.assert_allclose(statistics.entropy[attempt], entropy, atol=1e-5)
            np.testing.assert_allclose(statistics.gate[attempt], model.gate(h).flatten(), atol=1e-5)
    assert statistics.place[:7].tolist() == [0, 1, 2, 3, 4, 5, 0]
    assert set(statistics.scores()) == {"gate", "entropy", "random", "oracle"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spoken_nll(SCORE, NLL[0], 0.0), "coverage = 0.0: give a share"),
        (lambda: spoken_nll(SCORE, NLL[0], 1.5), "coverage = 1.5: give a share"),
        (lambda: skipping_nll(SCORE, NLL, 1.0), "skips = 1.0: give a share"),
    ],
)
def test_bad_shares_are_named(call, message):
    with pytest.raises(UserError, match=message):
        call()
