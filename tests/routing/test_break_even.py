"""How many tokens must leave at an exit before asking pays."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from offramp.exits.classifier import ExitClassifier
from offramp.routing.break_even import AskAtOneExit, flops_break_even, judged, median, seconds_break_even
from offramp.routing.cost import executed_flops, exit_costs, full_depth_flops
from offramp.routing.executor import Executor, Work
from tests.routing.test_executor import make_model


@pytest.mark.parametrize("kind", ["state", "readout"])
def test_at_break_even_the_costs_of_those_who_leave_and_of_those_who_stay_make_a_plain_pass(kind):
    model = make_model((1, 3))
    leaving, staying = exit_costs(model, 24, kind == "readout", 100 if kind == "state" else 0)
    share = flops_break_even(model, 24, 0, kind, classifier_flops=100)
    assert share * leaving + (1 - share) * staying == pytest.approx(1)
    assert 0 < share < 1


def test_an_exit_behind_which_there_is_less_than_leaving_costs_never_pays():
    model = make_model((1, 1))
    # a dear translator before the first exit's readout
    model.readout_flops = lambda exit: 10**6 * (exit == 0)
    assert flops_break_even(model, 24, 0, "state", classifier_flops=100) is None


@pytest.mark.parametrize("kind, readouts", [("state", [0, 0, 96]), ("readout", [0, 96, 96])])
def test_asking_changes_no_loss_and_is_counted(kind, readouts):
    model = make_model((1, 1, 1))
    tokens, targets = torch.randint(50, (2, 4, 24), generator=torch.Generator().manual_seed(0))
    policy = AskAtOneExit(model, 1, kind, ExitClassifier(16, [8]), torch.zeros(96, dtype=torch.bool))
    work, executor = Work(), Executor(model)
    asked = executor.run(tokens, targets, policy, work)
    torch.testing.assert_close(asked.loss, executor.run(tokens, targets, None).loss)
    assert (asked.exit == 2).all() and work.readouts == readouts
    extra = executed_flops(model, work) - full_depth_flops(model, 96, 24)
    assert extra == (96 * model.readout_flops(1) if kind == "readout" else 0)


def test_those_laid_down_leave_at_that_exit_only():
    model = make_model((1, 1, 1))
    tokens, targets = torch.randint(50, (2, 4, 24), generator=torch.Generator().manual_seed(0))
    leaves = torch.rand(96, generator=torch.Generator().manual_seed(1)) < 0.5
    taken = (
        Executor(model)
        .run(tokens, targets, AskAtOneExit(model, 1, "readout", ExitClassifier(16, [8]), leaves))
        .exit
    )
    assert torch.equal(taken.flatten(), torch.where(leaves, 1, 2))


def of(asked, leaving, rounds=9):
    """What is judged of batches that all take the same, as shares of the plain pass."""
    return judged(np.full(rounds, asked), np.full(rounds, leaving))


def test_the_break_even_share_is_where_the_line_of_times_crosses_the_plain_one():
    # half of the tokens take off twice what asking puts on
    assert of(1.1, 0.9).share == (pytest.approx(0.25), [pytest.approx(0.25)] * 2)
    assert of(1.1, 0.9).clock == "shown" and of(1.1, 0.9).asking_cost.value == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("asked", "leaving", "clock"),
    [
        (1.5, 1.3, "never"),  # 1.25 of the tokens
        (1.1, 1.2, "never"),  # leaving takes longer than staying
        (0.99, 1.05, "never"),
        (1.1, 1.1, "inconclusive"),  # leaving saves nothing that is seen
        (0.99, 0.9, "inconclusive"),  # asking cannot take less than nothing
        (1.0, 0.9, "inconclusive"),
    ],
)
def test_a_cost_below_nothing_is_never_believed(asked, leaving, clock):
    judged_ = of(asked, leaving)
    assert judged_.clock == clock and judged_.share is None


NOISE = np.array([0.04, -0.03, 0.02, -0.05, 0.01, 0.03, -0.02, 0.05, -0.04])


@pytest.mark.parametrize(
    ("asked", "noise", "clock"), [(1.01, 1, "inconclusive"), (1.1, 1, "shown"), (1.01, 0.1, "shown")]
)
def test_timing_is_inconclusive_where_noise_is_as_large_as_what_asking_costs(asked, noise, clock):
    timed = judged(asked + noise * NOISE, 0.6 + noise * NOISE[::-1])
    low, high = timed.asking_cost.interval
    assert timed.clock == clock and (low > 0) == (clock == "shown") and low < asked - 1 < high
    if timed.share:
        low, high = timed.share.interval
        assert 0 < low < timed.share.value < high < 1


def test_one_batch_out_of_line_on_either_side_changes_nothing():
    seconds = np.array([1.1, 1.1, 0.2, 1.1, 1.1, 1.1, 1.1, 9.0, 1.1])
    assert judged(seconds, seconds - 0.2).clock == "shown"


def test_fewer_than_six_batches_show_nothing():
    assert of(1.1, 0.9, rounds=5).clock == "inconclusive" and of(1.1, 0.9, rounds=6).clock == "shown"


@pytest.mark.parametrize("count", [6, 9, 20])
def test_the_interval_of_a_median_holds_it_as_often_as_it_says(count):
    """Of a skewed distribution whose median is known, and it is not much wider than it must be."""
    random, held = np.random.default_rng(count), 0
    for _ in range(2000):
        low, high = median(random.exponential(size=count)).interval
        held += low <= np.log(2) <= high
    assert 0.94 < held / 2000 < 0.985


def test_every_exit_is_timed():
    model = make_model((1, 1, 1))
    batch = tuple(torch.randint(50, (2, 4, 24), generator=torch.Generator().manual_seed(0)))
    timed = seconds_break_even(Executor(model), [batch] * 3, [8], "state")
    assert len(timed.plain) == 3 and all(seconds > 0 for seconds in timed.plain)
    assert len(timed.exits) == 2 and all(asked.asking_cost.value > -1 for asked in timed.exits)
    assert all(asked.clock == "inconclusive" for asked in timed.exits), "three batches are too few"
