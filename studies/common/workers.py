"""Running the arms of a study: several at a time, in any order, with the same results."""

from __future__ import annotations

import multiprocessing
import signal
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

from tqdm import tqdm

from offramp.errors import UserError
from offramp.machine.device import setup
from offramp.machine.entry import SIGNALS

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
    with tqdm(total=len(jobs), unit="arm", disable=None) as bar:
        if min(processes, len(jobs)) <= 1:
            results = {}
            for place in order:
                results[place] = train(*jobs[place])
                bar.update()
        else:
            with _workers(min(processes, len(jobs))) as pool:
                running = {pool.submit(train, *jobs[place]): place for place in order}
                results = {}
                for done in as_completed(running):
                    results[running[done]] = done.result()
                    bar.update()
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
        _workers(processes) as pool,
    ):
        keys = {pool.submit(first, *job): key for key, job in starts.items()}
        running: dict[Name, Future[Later]] = {}
        for begun in as_completed(keys):
            for name, (key, job) in chains.items():
                if key == keys[begun]:
                    running[name] = pool.submit(later, begun.result(), *job)
                    running[name].add_done_callback(lambda _: bar.update())
        return {name: running[name].result() for name in chains}


@contextmanager
def _workers(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Processes with one thread each, which end with the context: at once where it ends by an exception.

    UserError where one of them is killed.
    """
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context(START), _begin)
    try:
        yield pool
    except BaseException as error:
        for worker in set(multiprocessing.active_children()) - others:
            worker.kill()
        pool.shutdown(cancel_futures=True)
        if isinstance(error, BrokenProcessPool):
            raise UserError(
                "a process that trained an arm was killed, as the system does where memory runs out; end "
                "other programs, then begin again: what was finished is found"
            ) from error
        raise
    pool.shutdown()


def _begin() -> None:
    """Undo handlers of signals, which are for the process that waits for the results: in a worker one may
    never run, where the signal comes just before the worker waits for work. What is ignored stays so.
    """
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
    setup("cpu", 1)
