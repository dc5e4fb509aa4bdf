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
"""Of processes: forked ones need not import torch again; nothing that they could inherit half done runs beside them here."""

Found, Other = TypeVar("Found"), TypeVar("Other")
Key, Name = TypeVar("Key", bound=Hashable), TypeVar("Name", bound=Hashable)


def run_arms(
    train: Callable[..., Found],
    jobs: Sequence[tuple[Any, ...]],
    processes: int,
    cost: Callable[..., float] | None = None,
) -> list[Found]:
    """``train(*job)`` of every job, in their order; ``processes`` at a time, each with one thread.

    Those of the highest ``cost(*job)``, in any unit, begin first, so that no process is idle beside a long one at the end.
    ``train`` is a function of a module and must draw from generators that it seeds itself: then no job's result depends
    on the others, or on which process ran it.
    """
    setup("cpu", 1)
    order = sorted(range(len(jobs)), key=lambda place: -cost(*jobs[place])) if cost else range(len(jobs))
    work = [(place, train, jobs[place]) for place in order]
    bar = partial(tqdm, total=len(jobs), unit="arm", disable=None)
    if min(processes, len(jobs)) <= 1:
        found = dict(_placed(job) for job in bar(work))
    else:
        with multiprocessing.get_context(START).Pool(min(processes, len(jobs)), setup, ("cpu", 1)) as pool:
            found = dict(bar(pool.imap_unordered(_placed, work)))
    return [found[place] for place in range(len(jobs))]


def both_protocols(
    published: Callable[..., Found],
    published_jobs: Sequence[tuple[Any, ...]],
    corrected: Callable[..., Other],
    corrected_jobs: Sequence[tuple[Any, ...]],
    processes: int,
    cost: Callable[..., float] | None = None,
) -> tuple[list[Found], list[Other]]:
    """``run_arms`` of both at once, ``cost`` that of corrected jobs; published arms, of one seed and shorter, begin last."""
    jobs = [(published, *job) for job in published_jobs] + [(corrected, *job) for job in corrected_jobs]

    def dearest(train: Callable[..., Any], *job: Any) -> float:
        if train is published:
            return 0.0
        return cost(*job) if cost else 1.0

    found = run_arms(call, jobs, processes, cost=dearest)
    return found[: len(published_jobs)], found[len(published_jobs) :]


def run_chains(
    first: Callable[..., Found],
    starts: Mapping[Key, tuple[Any, ...]],
    later: Callable[..., Other],
    chains: Mapping[Name, tuple[Key, tuple[Any, ...]]],
    processes: int,
) -> dict[Name, Other]:
    """``later(first(*start), *job)`` of every chain, a key of ``starts`` and a job; each start runs once.

    As ``run_arms`` does it, but no chain waits for other starts than its own. Starts and chains begin in their order.
    """
    setup("cpu", 1)
    if processes <= 1:
        made = {key: first(*job) for key, job in starts.items()}
        return {name: later(made[key], *job) for name, (key, job) in chains.items()}
    with (
        tqdm(total=len(chains), unit="arm", disable=None) as bar,
        ProcessPoolExecutor(processes, multiprocessing.get_context(START), setup, ("cpu", 1)) as pool,
    ):
        keys = {pool.submit(first, *job): key for key, job in starts.items()}
        running: dict[Name, Future[Other]] = {}
        for begun in as_completed(keys):
            for name, (key, job) in chains.items():
                if key == keys[begun]:
                    running[name] = pool.submit(later, begun.result(), *job)
                    running[name].add_done_callback(lambda _: bar.update())
        return {name: running[name].result() for name in chains}


def call(train: Callable[..., Found], *job: Any) -> Found:
    return train(*job)


def _placed(job: tuple[int, Callable[..., Found], tuple[Any, ...]]) -> tuple[int, Found]:
    place, train, given = job
    return place, train(*given)
