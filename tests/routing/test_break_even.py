"""How many tokens must leave at an exit before asking pays."""

from __future__ import annotations

import pytest
import torch

from offramp.exits.classifier import ExitClassifier
from offramp.routing.break_even import AskAtOneExit, flops_break_even, line_through, seconds_break_even
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


def test_the_break_even_share_is_where_the_line_of_times_crosses_the_plain_one():
    # half of the tokens take off twice what asking puts on
    assert line_through(1.1, 0.9).break_even == pytest.approx(0.25)
    assert line_through(0.99, 0.9).break_even == 0
    assert line_through(0.99, 1.05).break_even is None  # asking took no time, but leaving saved none
    assert line_through(1.1, 1.1).break_even is None
    assert line_through(1.5, 1.3).break_even is None  # 1.25 of the tokens


def test_every_exit_and_kind_of_signal_is_timed():
    model = make_model((1, 1, 1))
    batch = tuple(torch.randint(50, (2, 4, 24), generator=torch.Generator().manual_seed(0)))
    timed = seconds_break_even(Executor(model), [batch] * 3, [8])
    assert len(timed.plain) == 3 and all(seconds > 0 for seconds in timed.plain)
    assert len(timed.exits) == 2 and all(set(of_exit) == {"state", "readout"} for of_exit in timed.exits)
    assert all(
        asked.asking_cost > -1 and asked.saving < 1 for of_exit in timed.exits for asked in of_exit.values()
    )
