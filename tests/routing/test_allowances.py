"""Thresholds by what may suffer: chosen on calibration text, and test text has no part in it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offramp.routing.allowances import ALLOWED, PARTS, THRESHOLDS, allowances, best, effects
from offramp.routing.cost import exit_costs
from offramp.routing.sweep import all_scorers
from offramp.routing.thresholds import exits_taken


def chosen(split, states=None):
    scorers = all_scorers(split.exits, torch.device("cpu"))
    some = {name: scorers[name] for name in ("learned", "max_prob")}
    return allowances(
        split.exits, some, states or split.states, split.model, split.windows.window, split.settings
    )


@pytest.fixture(scope="module")
def rows(split):
    return chosen(split)


def held_out(split, signal):
    parts = [split.exits.held_out(signal, part) for part in PARTS]
    return {
        name: np.concatenate([part[name] for part in parts], axis=-1)
        for name in ("confidence", "loss", "argmax")
    }


def test_a_row_for_every_signal_aim_and_allowance(rows):
    assert [(row.signal, row.aim, row.allowed) for row in rows] == [
        (signal, aim, allowed)
        for signal in ("learned", "max_prob")
        for aim in ("ppl", "agreement")
        for allowed in ALLOWED
    ]


def test_every_row_is_what_its_threshold_does_to_calibration_text(split, rows):
    """Token by token, without the pass over all thresholds at once."""
    for row in rows:
        held = held_out(split, row.signal)
        taken = exits_taken(held["confidence"], [row.threshold])
        loss, full = held["loss"].astype(np.float64), held["loss"][-1].astype(np.float64)
        at_exit = np.take_along_axis(loss, taken[None], axis=0)[0]
        argmax = np.take_along_axis(held["argmax"], taken[None], axis=0)[0]
        assert row.tokens == len(taken)
        assert row.shallow_ratio == pytest.approx((taken == 0).mean())
        assert row.ppl_increase == pytest.approx(np.exp(at_exit.mean() - full.mean()) - 1, abs=1e-9)
        assert row.agreement == pytest.approx((argmax == held["argmax"][-1]).mean())
        assert row.full_ppl == pytest.approx(np.exp(full.mean()))


def test_none_spoils_more_than_is_allowed_and_no_cheaper_threshold_was_passed_over(split, rows):
    for row in rows:
        suffered = row.ppl_increase if row.aim == "ppl" else 1 - row.agreement
        assert suffered <= row.allowed
        held = held_out(split, row.signal)
        scorer = all_scorers(split.exits, torch.device("cpu"))[row.signal]
        costs = np.array(
            exit_costs(split.model, split.windows.window, scorer.reads_out, scorer.flops_per_token)
        )
        known = effects(held["confidence"], held["loss"], held["argmax"], costs, THRESHOLDS)
        spoiled = known.ppl_increase if row.aim == "ppl" else 1 - known.agreement
        best_saving = known.flop_saving[spoiled <= row.allowed].max()
        if best_saving > 0:
            assert row.flop_saving == best_saving
        else:
            assert row.threshold == 1 and row.shallow_ratio == 0


def test_test_text_never_chooses(split, rows):
    """With other test text, thresholds and all that was known by calibration text are the same."""

    class Reversed:
        """The same tokens with their losses at both exits exchanged."""

        def __getattr__(self, name):
            return getattr(split.states, name)

        def column(self, name):
            swapped = {"loss_0": "loss_1", "loss_1": "loss_0"}
            return split.states.column(swapped.get(name, name))

    others = chosen(split, Reversed())
    assert [row.threshold for row in others] == [row.threshold for row in rows]
    of_calibration = [
        {name: value for name, value in row.to_json().items() if not name.startswith("test_")} for row in rows
    ]
    assert of_calibration == [
        {name: value for name, value in row.to_json().items() if not name.startswith("test_")}
        for row in others
    ]
    assert any(row.test_ppl_increase != other.test_ppl_increase for row, other in zip(rows, others))


def test_test_columns_are_what_the_threshold_does_to_test_text(split, rows):
    for row in rows[:4]:  # of learned, whose confidences the fixture has
        taken = exits_taken(split.confidence, [row.threshold])
        loss = np.stack(split.cached.loss).astype(np.float64)
        at_exit = np.take_along_axis(loss, taken[None], axis=0)[0]
        assert row.test_tokens == len(taken)
        assert row.test_shallow_ratio == pytest.approx((taken == 0).mean())
        assert row.test_ppl_increase == pytest.approx(np.exp(at_exit.mean() - loss[-1].mean()) - 1, abs=1e-9)


@given(
    st.lists(st.tuples(st.floats(0, 0.2), st.floats(-0.2, 0.6)), min_size=1, max_size=20), st.floats(0, 0.1)
)
def test_the_best_threshold_is_allowed_and_saves_most(candidates, allowed):
    suffered, saving = np.array([*candidates, (0.0, -0.1)]).T  # nobody leaves at the last
    place = best(suffered, saving, allowed)
    assert suffered[place] <= allowed
    within = saving[suffered <= allowed].max()
    assert saving[place] == within if within > 0 else place == len(saving) - 1
    if within > 0:
        assert not (saving[place + 1 :][suffered[place + 1 :] <= allowed] == within).any(), "the highest"
