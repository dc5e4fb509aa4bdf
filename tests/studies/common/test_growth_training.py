"""Arms that grow: what their stages share, where each goes on from, and what they cost."""

from __future__ import annotations

import pytest
import torch

from offramp.systems.ensemble import Optimisation
from offramp.systems.growth import schedule
from studies.common import growth_training
from studies.common.characters import Characters, corrected_splits
from studies.common.growth_study import points, points_at_equal_flops
from studies.common.growth_training import Arm, ModelSize, Plan, Task, build, planned_flops, train_all
from studies.common.study import HOME, SHARED, read_yaml
from tests.fixtures.character_texts import own_words, sizes

pytestmark = pytest.mark.slow

SMALL = ModelSize(width=16, heads=2, ffn_width=64, linear_std=0.02)


@pytest.fixture(scope="module")
def data() -> Characters:
    return corrected_splits(own_words([2100], 200, 200), "own", sizes())


def plan(**changes: int) -> Plan:
    return Plan(**{"start": 2, "stage": 1, "whole": 4, "batches_per_look": 1} | changes)


def trained(arms: dict[str, Arm], data: Characters, how: Plan, budget: float | None = None):
    """All arms of one text, by name."""
    return train_all({"a": Task(arms, data, how, SMALL, (0, 1), budget)}, 1)["a"]


def test_an_arm_does_not_depend_on_its_company(data):
    arms = {
        "grown": Arm(schedule("full append", 3, start=2)),
        "frozen": Arm(schedule("frozen append", 3, start=2)),
        "lpt": Arm(schedule("progressive", 3), "sum"),
    }
    together = trained(arms, data, plan())
    assert trained({"frozen": arms["frozen"]}, data, plan())["frozen"] == together["frozen"]
    assert together["grown"].stages[0] == together["frozen"].stages[0]
    assert together["grown"].stages[1] != together["frozen"].stages[1]


def test_a_stage_goes_on_from_the_best_weights_or_the_last(data, monkeypatch):
    """Rates so high that the later of two looks is the worse one."""
    monkeypatch.setattr(growth_training, "AS_PUBLISHED", Optimisation(learning_rate=0.3))
    arms = {kind: Arm(schedule("no growth", 2, goes_on_from=kind)) for kind in ("best", "last")}
    looks = trained(arms, data, plan(start=8))
    first = torch.tensor(looks["best"].stages[0].calibration)
    assert (first.argmin(dim=0) < 7).any(), "nothing to tell apart"
    assert looks["best"].stages[1].at_once == looks["best"].stages[0].planned.nll
    assert looks["last"].stages[0] == looks["best"].stages[0]
    assert looks["last"].stages[1].at_once != looks["best"].stages[1].at_once


@pytest.fixture(scope="module")
def within_budget(data):
    """Looks of an arm that grows and of two that do not, at its cost; and that cost."""
    arms = {
        "grown": Arm(schedule("progressive", 4)),
        "no growth": Arm(schedule("no growth", 4)),
        "scratch": Arm(schedule("progressive", 4, start=4)),
    }
    how = plan(start=2, stage=2, whole=8, batches_per_look=2)
    budget = planned_flops(arms["grown"], data, how, SMALL)
    return trained(arms, data, how, budget), budget


def test_the_arm_that_sets_the_budget_spends_it_as_planned(within_budget):
    looks, budget = within_budget
    last = looks["grown"].stages[-1]
    assert (last.flops_after, last.updates_after) == (budget, 16)
    assert last.equal_flops == last.planned


def test_a_control_of_one_layer_trains_on_until_it_has_cost_as_much(within_budget):
    looks, budget = within_budget
    last = looks["no growth"].stages[-1]
    rest = budget - last.flops_after
    assert last.updates_after > 16 and 0 <= rest < last.flops_per_batch, "to the very update"
    assert max(last.planned.updates) <= 16


def test_four_layers_from_scratch_have_their_last_look_early(within_budget):
    looks, budget = within_budget
    last = looks["scratch"].stages[-1]
    paid = budget // last.flops_per_batch
    assert last.updates_after == 16 and max(last.equal_flops.updates) <= paid < 16
    assert paid in last.looks


def test_a_limit_may_lie_between_two_looks(within_budget):
    looks, _ = within_budget
    odd = {name for name, arm in looks.items() for batches in arm.stages[-1].looks if batches % 2}
    assert odd and odd <= {"no growth", "scratch"}


def test_points_are_arms_and_their_stages(within_budget):
    looks, _ = within_budget
    assert set(points_at_equal_flops(looks)) == {"grown", "no_growth", "scratch"}
    assert {"grown", "grown_1", "grown_4", "grown_at_once", "no_growth_4", "scratch"} <= set(points(looks))


def test_a_frozen_layer_costs_no_backward_pass(data):
    cost = {
        name: planned_flops(Arm(schedule(name, 4)), data, plan(), SMALL)
        for name in ("greedy", "progressive", "no growth")
    }
    assert cost["no growth"] < cost["greedy"] < cost["progressive"]


def test_models_have_the_size_and_the_weights_of_the_report():
    model = build(4, 30, ModelSize.of(read_yaml(HOME / SHARED)["growth"]))
    assert sum(parameter.numel() for parameter in model.parameters()) == 266_496
    assert all(0.015 < parameter.std() < 0.025 for parameter in model.parameters() if parameter.ndim == 2)
