"""Arms side by side: in any order and number of processes with the same results."""

from __future__ import annotations

import operator

import pytest
import torch

from studies.common.workers import run_arms, run_chains


def drawn(seed: int, count: int) -> list[float]:
    """Random numbers from a generator of its own."""
    return torch.rand(count, generator=torch.Generator().manual_seed(seed)).tolist()


def test_arms_give_the_same_in_any_order_and_number_of_processes():
    jobs = [(seed, 3 - seed) for seed in range(3)]
    forth = run_arms(drawn, jobs, processes=2, cost=lambda seed, count: count)
    back = run_arms(drawn, jobs[::-1], processes=1)[::-1]
    assert forth == back == [drawn(*job) for job in jobs]


def test_dear_arms_begin_first_and_results_keep_their_places():
    begun = []

    def train(arm: str, updates: int) -> str:
        begun.append(arm)
        return arm.upper()

    jobs = [("cheap", 1), ("dear", 3), ("middle", 2)]
    assert run_arms(train, jobs, processes=1, cost=lambda arm, updates: updates) == [
        "CHEAP",
        "DEAR",
        "MIDDLE",
    ]
    assert begun == ["dear", "middle", "cheap"]


def test_an_error_in_an_arm_is_raised():
    with pytest.raises(ZeroDivisionError):
        run_arms(operator.truediv, [(1, 1), (1, 0)], processes=2)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_chain_goes_on_from_its_own_start(processes):
    chains = {"one": ("a", (1,)), "two": ("b", (10,)), "three": ("a", (100,))}
    starts = {"a": (2, 3), "b": (4, 5)}
    results = run_chains(operator.mul, starts, operator.add, chains, processes)
    assert results == {"one": 7, "two": 30, "three": 106}
