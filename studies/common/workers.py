"""Running the arms of a study: several at a time, in any order, with the same results."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from functools import partial
from typing import Any, TypeVar

from tqdm import tqdm

from offramp.machine.device import setup

START = "fork" if sys.platform == "linux" else "spawn"
"""Of processes: forked ones need not import torch again; nothing that they could inherit half done runs
beside them here."""

Result, Later = TypeVar("Result"), TypeVar("Later")
Key, Name = TypeVar("Key", bound=Hashable), TypeVar("Name", bound=Hashable)


def run_arms(
    train: Callable[..., Result],
    jobs: Sequence[tuple[Any, ...]],
    processes: int,
    cost: Callable[..., float] | None = None,
) -> list[Result]:
    """``train(*job)`` of every job, in their order; ``processes`` at a time, each with one thread.

    Those of the highest ``cost(*job)``, in any unit, begin first, so that no process is idle beside a long
    one at the end. ``train`` is a function of a module and must draw from generators that it seeds itself:
    then no job's result depends on the others, or on which process ran it.
    """
    setup("cpu", 1)
    order = sorted(range(len(jobs)), key=lambda place: -cost(*jobs[place])) if cost else range(len(jobs))
    work = [(place, train, jobs[place]) for place in order]
    bar = partial(tqdm, total=len(jobs), unit="arm", disable=None)
    if min(processes, len(jobs)) <= 1:
        results = dict(_placed(job) for job in bar(work))
    else:
        with multiprocessing.get_context(START).Pool(min(processes, len(jobs)), setup, ("cpu", 1)) as pool:
            results = dict(bar(pool.imap_unordered(_placed, work)))
    return [results[place] for place in range(len(jobs))]


def run_chains(
    first: Callable[..., Result],
    starts: Mapping[Key, tuple[Any, ...]],
    later: Callable[..., Later],
    chains: Mapping[Name, tuple[Key, tuple[Any, ...]]],
    processes: int,
) -> dict[Name, Later]:
    """``later(first(*start), *job)`` of every chain, a key of ``starts`` and a job; each start runs once.

    As ``run_arms`` does it, but no chain waits for other starts than its own. Starts and chains begin in
    their order.
    """
    setup("cpu", 1)
    if processes <= 1:
        started = {key: first(*job) for key, job in starts.items()}
        return {name: later(started[key], *job) for name, (key, job) in chains.items()}
    with (
        tqdm(total=len(chains), unit="arm", disable=None) as bar,
        ProcessPoolExecutor(processes, multiprocessing.get_context(START), setup, ("cpu", 1)) as pool,
    ):
        keys = {pool.submit(first, *job): key for key, job in starts.items()}
        running: dict[Name, Future[Later]] = {}
        for begun in as_completed(keys):
            for name, (key, job) in chains.items():
                if key == keys[begun]:
                    running[name] = pool.submit(later, begun.result(), *job)
                    running[name].add_done_callback(lambda _: bar.update())
        return {name: running[name].result() for name in chains}


def _placed(work: tuple[int, Callable[..., Result], tuple[Any, ...]]) -> tuple[int, Result]:
    place, train, job = work
    return place, train(*job)
