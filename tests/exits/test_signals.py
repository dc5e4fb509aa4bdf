"""Confidence signals: orientation, cost, and refusal of what inference cannot have."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp import vocabulary
from offramp.errors import UserError
from offramp.exits.labels import KINDS
from offramp.exits.signals import SIGNALS, known_signals, raw_signal


def test_signals_are_oriented_towards_sureness():
    """A peaked distribution is surer than a flat one, a state that stopped surer than one that turns."""
    logits = torch.tensor([[8.0, 0.0, 0.0, -1.0], [0.3, 0.2, 0.1, 0.0]])
    p = logits.softmax(1)
    top = logits.topk(2).values
    statistics = {
        "max_prob": p.amax(1),
        "max_logit": top[:, 0],
        "mean_logit": logits.mean(1),
        "margin": top[:, 0] - top[:, 1],
        "entropy": -(p * p.log()).sum(1),
        "saturation": torch.tensor([0.99, 0.1]),
        "patience": torch.tensor([1.0, 0.0]),
    }
    for name in SIGNALS:
        peaked, flat = raw_signal(name, statistics)
        assert peaked > flat, name


def test_unknown_signal_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"sureness.*learned, max_prob"):
        raw_signal("sureness", {})


def test_an_oracle_is_refused_at_inference_and_a_missing_statistic_is_named():
    with pytest.raises(UserError, match=r"correct_prob.*needs the target.*max_prob"):
        raw_signal("correct_prob", {"correct_prob": np.ones(3)})
    with pytest.raises(UserError, match=r"margin_prob.*'max_prob'"):
        raw_signal("margin_prob", {"margin": np.ones(3)})


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), entries=st.integers(2, 30))
def test_the_probability_margin_is_the_difference_of_the_two_largest_probabilities(seed, entries):
    logits = torch.randn(5, entries, generator=torch.Generator().manual_seed(seed)) * 3
    p, top = logits.softmax(1).topk(2).values, logits.topk(2).values
    columns = {"max_prob": p[:, 0], "margin": top[:, 0] - top[:, 1]}
    torch.testing.assert_close(raw_signal("margin_prob", columns), p[:, 0] - p[:, 1], atol=1e-6, rtol=1e-4)
    arrays = {name: values.numpy() for name, values in columns.items()}
    np.testing.assert_allclose(raw_signal("margin_prob", arrays), p[:, 0] - p[:, 1], atol=1e-6, rtol=1e-4)


def test_what_a_signal_costs():
    """A readout, or the three inner products of a cosine."""
    assert SIGNALS["entropy"].flops(128, 1024) == 2 * 128 * 1024
    assert SIGNALS["saturation"].flops(128, 1024) == 6 * 128 and not SIGNALS["saturation"].reads_out


def test_the_parameters_know_the_same_signals_and_labels():
    assert set(vocabulary.SIGNALS) == {vocabulary.LEARNED, *SIGNALS}
    assert not set(vocabulary.ORACLES) & set(SIGNALS)
    assert set(get_args(vocabulary.Label)) == set(KINDS)
    assert "patience" not in known_signals(2) and "patience" in known_signals(3)
