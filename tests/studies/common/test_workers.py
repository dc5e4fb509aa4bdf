"""Arms side by side: in any order and number of processes with the same results."""

from __future__ import annotations

import multiprocessing
import operator
import os
import signal
import time

import pytest
import torch

from offramp.errors import UserError
from offramp.machine import entry
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


def handled(number: int) -> bool:
    """Whether a signal would have to wait for Python."""
    time.sleep(0.1)  # both processes get one
    return callable(signal.getsignal(number)) and signal.getsignal(number) is not signal.default_int_handler


def test_workers_do_not_inherit_the_handlers_of_a_command():
    """Else a worker that is asked to end just before it waits for work waits for ever, and we for it."""
    found = []
    assert entry.run(lambda: found.extend([handled(signal.SIGTERM)]), "test", "nothing", "again") == 0
    assert found == [True]
    jobs = [(signal.SIGTERM,), (signal.SIGINT,)]
    assert entry.run(lambda: found.extend(run_arms(handled, jobs, 2)), "test", "nothing", "again") == 0
    assert found == [True, False, False]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_worker_that_is_killed_ends_the_run_with_an_error(how):
    def run():
        return run_arms(_die, [(how,), (how,), (how,)], 2)

    with pytest.raises(UserError, match="a process that trained an arm was killed"):
        run()
    assert not multiprocessing.active_children()


def test_a_stopped_run_leaves_no_process_that_goes_on():
    def stop(*_: object) -> None:
        raise entry.Stopped(signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 1)
    began = time.monotonic()
    try:
        with pytest.raises(entry.Stopped):
            run_arms(time.sleep, [(60,), (60,), (60,)], 2)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - began < 30
    assert not multiprocessing.active_children()


def _die(how: signal.Signals) -> None:
    os.kill(os.getpid(), how)
    time.sleep(60)
