"""The threshold curve: every signal and control at the same exit fractions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from offramp.routing.sweep import all_scorers, threshold_curve
from offramp.vocabulary import CONTROLS, FIXED


@pytest.fixture(scope="module")
def curve(split):
    scorers = all_scorers(split.exits, torch.device("cpu"))
    chosen = {name: scorers[name] for name in ("learned", "max_prob")}
    return threshold_curve(split.executor, split.windows, split.states, chosen, split.settings)


def test_fixed_depths_come_first_then_every_fraction_with_all_who_choose(curve):
    names = [FIXED] * 2 + ["learned", "max_prob", *CONTROLS] * 2
    assert [point.signal for point in curve] == names
    assert [point.fraction for point in curve] == [1.0, 0.0] + [0.3] * 6 + [0.7] * 6


def test_the_fraction_asked_for_leaves_whoever_chooses(curve):
    for point in curve:
        assert point.shallow_ratio == pytest.approx(point.fraction, abs=2e-3)


def test_random_exits_are_at_0_and_an_oracle_at_1_of_its_own_scale(curve):
    for point in curve:
        headroom = {"random": 0.0, "gain_oracle": 1.0}.get(point.signal)
        attained = {"random": 0.0, "divergence_oracle": 1.0}.get(point.signal)
        assert headroom is None or point.headroom == headroom
        assert attained is None or point.attained == attained
        assert (point.headroom is None) == (point.attained is None) == (point.signal == FIXED)


def test_attained_has_an_interval_and_says_on_how_many_tokens_it_stands(split, curve):
    for point in curve:
        assert point.tokens == 12 * split.windows.window
        if point.signal in ("learned", "max_prob", "loss_oracle"):
            assert point.attained_low <= point.attained <= point.attained_high


def test_signals_alone_have_a_threshold_and_pay_for_asking(curve):
    at = {point.signal: point for point in curve if point.fraction == 0.3}
    for name in CONTROLS:
        assert at[name].threshold is None and at[name].flop_saving > at["max_prob"].flop_saving
    assert 0 < at["learned"].threshold < 1
    assert at["learned"].flop_saving > at["max_prob"].flop_saving, "a readout costs more than a classifier"
    assert np.isclose(at["learned"].layer_saving, at["random"].layer_saving)
