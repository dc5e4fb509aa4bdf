"""Controls stand on the tokens of the signal and let as many leave."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from offramp.exits.assignment import exits_of_least
from offramp.routing.controls import ControlWindows, compare_with_controls, fixed_depths
from offramp.routing.cost import executed_flops, full_depth_flops
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


@pytest.mark.parametrize(
    ("measure", "oracle"), [("headroom", "gain_oracle"), ("attained", "divergence_oracle")]
)
def test_both_measures_are_the_part_of_the_way_from_random_exits_to_an_oracle(comparison, measure, oracle):
    nll = {name: np.log(getattr(comparison.controls, name).ppl) for name in ("signal", *CONTROLS)}
    assert nll["gain_oracle"] < nll["divergence_oracle"] < nll["random"]
    expected = (nll["random"] - nll["signal"]) / (nll["random"] - nll[oracle])
    share = getattr(comparison, measure)
    assert share.value == pytest.approx(expected, rel=1e-6)
    low, high = share.interval
    assert low <= share.value <= high


def test_where_nobody_leaves_there_is_nothing_to_choose(split):
    stay = run_split(split.executor, split.windows, torch.arange(len(split.windows)), batch_size=4)
    nobody = compare(split, stay)
    for share in (nobody.headroom, nobody.attained):
        assert share.value is None and share.interval is None
    signal = nobody.controls.signal
    assert signal == nobody.controls.gain_oracle == nobody.controls.divergence_oracle
    assert nobody.controls.random.ppl == pytest.approx(signal.ppl)


@pytest.mark.parametrize(
    ("oracle", "measure", "values"),
    [("gain_oracle", "headroom", "loss"), ("divergence_oracle", "attained", "divergence")],
)
def test_an_oracle_itself_gets_all_the_way(split, oracle, measure, values):
    """Its exits taken for the signal's, on the control windows."""
    rows = rows_of(split)
    table = np.stack([column[rows] for column in getattr(split.cached, values)])
    exits = exits_of_least(table, [len(rows) // 2])
    chosen = spread_windows(len(split.windows), 12)
    run = run_split(split.executor, split.windows, chosen, batch_size=4, exits=exits)
    whole = {name: getattr(split.routed, name).copy() for name in ("exit", "loss", "argmax")}
    for name, column in whole.items():
        column[rows] = getattr(run, name)
    assert getattr(compare(split, replace(split.routed, **whole)), measure).value == pytest.approx(1)


@pytest.fixture(scope="module")
def draws(split):
    """Of 20 random seeds the expectation that each gives from one pass, and that pass itself, executed."""
    floors, measured = [], []
    for seed in range(20):
        settings = split.settings.model_copy(update={"seed": seed})
        control = ControlWindows(split.executor, split.windows, split.states, settings)
        floor = control.random_exits([len(control.free) // 3])
        run, cached = floor.run, control.cached
        floors.append((floor.loss.mean(), floor.correct.mean(), floor.agrees.mean()))
        agrees = run.argmax == cached.argmax[-1]
        measured.append((run.loss.mean(dtype=float), (run.argmax == cached.target).mean(), agrees.mean()))
    return np.array(floors), np.array(measured)


def test_random_exits_are_the_mean_of_many_executed_draws(draws):
    floors, measured = draws
    error = np.sqrt((floors.var(0, ddof=1) + measured.var(0, ddof=1)) / 20)
    assert (error > 0).all()
    assert (abs(floors.mean(0) - measured.mean(0)) < 3 * error).all()


def test_another_draw_moves_the_floor_by_less_than_a_mean_of_nine_draws_even_of_an_untrained_model(draws):
    """Tokens that left disturb the others most where the model has learnt nothing."""
    floors, measured = draws
    assert floors[:, 0].std() < measured[:, 0].std() / 3


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


def test_the_loss_oracle_lets_go_whom_the_exit_predicts_best(split):
    control = ControlWindows(split.executor, split.windows, split.states, split.settings)
    exits = control.oracle_exits("loss_oracle", [10])
    assert set(np.flatnonzero(exits == 0)) == set(np.argsort(control.cached.loss[0], kind="stable")[:10])


def test_the_first_block_is_computed_once_for_all_controls(split, monkeypatch):
    """As far as there is room, which changes no number."""
    calls, first_block = [], split.executor.first_block

    def counted(tokens):
        calls.append(len(tokens))
        return first_block(tokens)

    monkeypatch.setattr(split.executor, "first_block", counted)
    wanted = compare(split, split.routed)
    assert calls == [4, 4, 4]
    for room in (0, 1):
        calls.clear()
        monkeypatch.setattr("offramp.routing.split.FIRST_BLOCK_BYTES", room)
        assert compare(split, split.routed) == wanted
        assert len(calls) == room
