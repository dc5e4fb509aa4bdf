"""Controls stand on the tokens of the signal and let as many leave."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from offramp.routing.controls import compare_with_controls, control_scores, fixed_depths
from offramp.routing.cost import executed_flops, full_depth_flops
from offramp.routing.policies import exits_by_share
from offramp.routing.split import run_split, spread_windows, token_rows
from offramp.vocabulary import CONTROLS


def compare(split, routed):
    return compare_with_controls(split.executor, split.windows, split.states, routed, split.settings)


def rows_of(split):
    return token_rows(spread_windows(len(split.windows), 12), split.windows.window)


@pytest.fixture(scope="module")
def comparison(split):
    return compare(split, split.routed)


def test_every_control_lets_as_many_tokens_leave_as_the_signal(split, comparison):
    controls = comparison.controls
    assert comparison.tokens == len(rows_of(split)) == 12 * split.windows.window
    for name in CONTROLS:
        assert controls.named(name).shallow_ratio == controls.signal.shallow_ratio


def test_the_signal_is_measured_on_the_control_tokens(split, comparison):
    loss = split.routed.loss[rows_of(split)].astype(np.float64)
    assert comparison.controls.signal.ppl == pytest.approx(np.exp(loss.mean()))


def test_headroom_is_the_part_of_the_way_from_random_exits_to_the_gain_oracle(comparison):
    nll = {name: np.log(getattr(comparison.controls, name).ppl) for name in ("signal", *CONTROLS)}
    assert nll["gain_oracle"] < nll["random"]
    headroom = (nll["random"] - nll["signal"]) / (nll["random"] - nll["gain_oracle"])
    assert comparison.headroom == pytest.approx(headroom, rel=1e-6)
    low, high = comparison.headroom_interval
    assert low <= headroom <= high


def test_where_nobody_leaves_there_is_nothing_to_choose(split):
    stay = run_split(split.executor, split.windows, torch.arange(len(split.windows)), batch_size=4)
    nobody = compare(split, stay)
    assert nobody.headroom is None and nobody.headroom_interval is None
    assert nobody.controls.signal == nobody.controls.random == nobody.controls.gain_oracle


def test_the_oracle_itself_has_all_of_the_headroom(split):
    """Its exits taken for the signal's, on the control windows."""
    rows = rows_of(split)
    losses = [loss[rows] for loss in split.cached.loss]
    exits = exits_by_share(control_scores(losses, "gain_oracle", 0), [len(rows) // 2])
    chosen = spread_windows(len(split.windows), 12)
    run = run_split(split.executor, split.windows, chosen, batch_size=4, exits=exits)
    whole = {name: getattr(split.routed, name).copy() for name in ("exit", "loss", "argmax")}
    for name, column in whole.items():
        column[rows] = getattr(run, name)
    assert compare(split, replace(split.routed, **whole)).headroom == pytest.approx(1)


def test_fixed_depths_are_those_of_a_run_in_which_all_leave_there(split):
    tokens = len(split.cached.target)
    for exit, depth in enumerate(fixed_depths(split.model, split.cached, split.windows.window)):
        everybody = np.full(tokens, exit)
        run = run_split(
            split.executor, split.windows, torch.arange(len(split.windows)), batch_size=64, exits=everybody
        )
        assert depth.ppl == pytest.approx(np.exp(run.loss.astype(np.float64).mean()), rel=1e-5)
        assert depth.shallow_ratio == (exit < split.cached.last)
        run.work.decided_tokens = 0
        whole = full_depth_flops(split.model, tokens, split.windows.window)
        assert depth.flop_saving == pytest.approx(1 - executed_flops(split.model, run.work) / whole)


def test_oracles_let_go_whom_they_say():
    losses = [np.array([1.0, 2.0, 3.0]), np.array([0.5, 2.5, 0.0])]
    assert control_scores(losses, "gain_oracle", 0).tolist() == [[-0.5, 0.5, -3.0]]
    assert control_scores(losses, "loss_oracle", 0).tolist() == [[-1.0, -2.0, -3.0]]
    assert (control_scores(losses, "random", 1) != control_scores(losses, "random", 2)).all()
