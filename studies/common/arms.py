"""Running the arms of a study: two at a time, in any order, with the same results; and the command line they share."""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import sys
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from offramp.errors import UserError
from offramp.machine.device import setup
from studies.common.characters import own_text, text_of
from studies.common.results import over_seeds, study_params, write_results
from studies.common.text import CORPORA, StudyText
from studies.ledger.figures import number

PROCESSES: int = study_params("ensembles")["processes"]
SEEDS: list[int] = study_params("ensembles")["seeds"]
"""Of the corrected protocol."""
PUBLISHED_SEED = 42

START = "fork" if sys.platform == "linux" else "spawn"
"""Of processes: forked ones need not import torch again; nothing that they could inherit half done runs beside them here."""

Found, Other = TypeVar("Found"), TypeVar("Other")
Key, Name = TypeVar("Key", bound=Hashable), TypeVar("Name", bound=Hashable)


def run_arms(
    train: Callable[..., Found],
    jobs: Sequence[tuple[Any, ...]],
    processes: int = PROCESSES,
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
    cost: Callable[..., float] | None = None,
) -> tuple[list[Found], list[Other]]:
    """``run_arms`` of both at once, ``cost`` that of corrected jobs; published arms, of one seed and shorter, begin last."""
    jobs = [(published, *job) for job in published_jobs] + [(corrected, *job) for job in corrected_jobs]

    def dearest(train: Callable[..., Any], *job: Any) -> float:
        if train is published:
            return 0.0
        return cost(*job) if cost else 1.0

    found = run_arms(call, jobs, cost=dearest)
    return found[: len(published_jobs)], found[len(published_jobs) :]


def run_chains(
    first: Callable[..., Found],
    starts: Mapping[Key, tuple[Any, ...]],
    later: Callable[..., Other],
    chains: Mapping[Name, tuple[Key, tuple[Any, ...]]],
    processes: int = PROCESSES,
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


@dataclass
class Outcome:
    """What a study found on one corpus; a protocol that did not run is None."""

    published: dict[str, float] | None = None
    corrected: list[dict[str, float]] | None = None
    """One dict per seed."""
    figures: dict[str, Any] = field(default_factory=dict)
    sentences: list[str] = field(default_factory=list)


Run = Callable[[StudyText, str, list[str]], Outcome]
"""(text, protocol: published, corrected or both, arms) -> outcome."""


def study_main(
    study: str,
    summary: str,
    arms: Iterable[str],
    flaws: list[str],
    run: Run,
    corpora: Sequence[str] = CORPORA,
) -> Callable[[], None]:
    """The ``main`` of a study: all arms are written to its result file, some of them are printed only."""
    known = list(arms)

    def main() -> None:
        parser = argparse.ArgumentParser(prog=f"python -m pipeline.studies.{study}", description=summary)
        parser.add_argument("--corpus", choices=corpora, help="one of the corpora, or give text of your own")
        for split in ("train", "calibration", "test"):
            parser.add_argument(
                f"--{split}", type=Path, metavar="FILE", help=f"your own text for {split}, all three together"
            )
        parser.add_argument("--protocol", choices=("published", "corrected", "both"), default="both")
        parser.add_argument(
            "--arm",
            action="append",
            metavar="NAME",
            help=f"print this arm alone: {', '.join(map(repr, known))}",
        )
        given = parser.parse_args()
        logging.basicConfig(level=logging.INFO, format=f"{study}: %(message)s", stream=sys.stderr)
        try:
            text = _text(given)
            chosen = chosen_arms(study, given.arm, known)
            outcome = run(text, given.protocol, chosen)
            if not (outcome.published or any(outcome.corrected or ())):
                raise UserError(
                    f"--protocol = {given.protocol!r}: {study} has none of {', '.join(map(repr, chosen))} for "
                    f"{text.corpus} text; try --protocol corrected with other arms, or a --corpus of its own"
                )
            if chosen == known:
                path = write_results(
                    study,
                    text.corpus,
                    text.record(),
                    flaws,
                    outcome.published,
                    outcome.corrected,
                    outcome.figures,
                    sentences=outcome.sentences,
                )
                logging.info("wrote %s", path)
            else:
                print("\n".join(_lines(outcome)))
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    return main


def chosen_arms(study: str, wanted: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """The arms asked for, in the study's order; all of them where none is. UserError for one that it does not have."""
    for name in wanted or ():
        if name not in known:
            raise UserError(
                f"--arm = {name!r} is not an arm of {study}; choose from {', '.join(map(repr, known))}"
            )
    return [name for name in known if not wanted or name in wanted]


def _text(given: argparse.Namespace) -> StudyText:
    files = {split: getattr(given, split) for split in ("train", "calibration", "test")}
    if (given.corpus is None) != all(files.values()) or len(set(map(bool, files.values()))) > 1:
        raise UserError("text: give either --corpus, or --train, --calibration and --test together")
    return text_of(given.corpus) if given.corpus else own_text(**files)


def _lines(outcome: Outcome) -> list[str]:
    """Every figure on a line, with its interval over seeds where it has one."""
    lines = [f"published  {key}  {number(value)}" for key, value in (outcome.published or {}).items()]
    for key, found in over_seeds(outcome.corrected).items() if outcome.corrected else ():
        lines.append(
            f"corrected  {key}  {number(found['value'])} [{number(found['low'])}, {number(found['high'])}]"
        )
    return lines
