"""``python -m studies relock [NAME ...]``: the only way to renew a lock without a whole rerun.

After a change of code that should change no result (a module moved, a line reworded), `dvc status` calls
studies changed whose results are still right. For each of them this reruns the published protocol and two
random seeds of the corrected one, with no cached model, and compares every value with the committed ones.
Where all are equal, the lock is renewed (`dvc commit`); where one is not, nothing is, and `dvc repro` is the
way. Two seeds and not one: seeds that train as one batch of weights take other kernels, and round
otherwise, when there is only one.

Equal means to the last digit: on another kind of processor last digits differ, a training carries them
further, and the lock is refused there, too. Seconds are not compared, nor values that pool all random seeds.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from offramp.errors import UserError
from studies.common.code import write_code
from studies.common.results import read_results, read_seeds
from studies.common.run import run_protocols
from studies.common.study import HOME, About, Protocol, Study, study_of
from studies.common.text import text_of

TOLERANCE = 1e-12
"""Relative difference up to which two numbers are one."""

SEEDS = 2

STAGES = ("sotu", "pangram", "pangram_as_published")
"""Groups of stages in dvc.yaml whose items are studies."""


def stale_stages(home: Path = HOME) -> list[str]:
    """Stages of studies that DVC would run again, such as ``sotu@exit_labels``."""
    status = json.loads(_dvc(home, "status", "--json"))
    return [stage for stage in status if stage.split("@")[0] in STAGES]


def differences(study: Study, corpus: str, home: Path = HOME) -> list[str]:
    """Values of the published protocol and of two random seeds that a rerun does not give again, in words.

    UserError where no values by random seed are committed to compare with.
    """
    committed = read_results(home, study.name, corpus)
    if committed is None:
        raise UserError(f"{study.name} has no results on {corpus}; run `dvc repro` in {home.name}/")
    seeds = study.about.seeds[:SEEDS]
    by_seed = read_seeds(home, study.name, corpus)
    if committed.corrected and not set(seeds) <= by_seed.keys():
        raise UserError(
            f"metrics/{study.name}.{corpus}.csv has no values of random seeds {seeds}; "
            f"run `dvc repro` in {home.name}/"
        )
    protocols: list[Protocol] = [name for name in ("published", "corrected") if getattr(committed, name)]
    with tempfile.TemporaryDirectory() as cache:
        outcomes = run_protocols(study, text_of(corpus), protocols, Path(cache), seeds=seeds)
    out = [f"{name}: committed alone" for name in protocols if name not in outcomes]
    if committed.published and "published" in outcomes:
        (rerun,) = outcomes["published"].rows
        out += (f"published {line}" for line in _unlike(committed.published.values, rerun, study.about))
    if committed.corrected and "corrected" in outcomes:
        for seed, rerun in zip(seeds, outcomes["corrected"].rows):
            out += (f"random seed {seed} {line}" for line in _unlike(by_seed[seed], rerun, study.about))
    return out


def _unlike(
    committed: Mapping[str, float | None], rerun: Mapping[str, float | None], about: About
) -> Iterator[str]:
    for key in sorted(committed.keys() | rerun.keys()):
        if any(part in key for part in (*about.timings, *about.pooled)):
            continue
        before, after = committed.get(key), rerun.get(key)
        if before is None or after is None:
            if before is not after:
                yield f"{key}: committed {before}, rerun {after}"
        elif not math.isclose(before, after, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
            yield f"{key}: committed {before!r}, rerun {after!r}"


def relock(stages: Sequence[str], home: Path = HOME) -> bool:
    """Renew the lock of every stage whose rerun agrees; whether all did."""
    agreed = True
    for stage in stages:
        corpus, name = stage.split("@")
        unlike = differences(study_of(name, home), corpus.split("_")[0], home)
        if unlike:
            agreed = False
            shown = "\n  ".join(unlike[:10])
            more = f"\n  and {len(unlike) - 10} more" if len(unlike) > 10 else ""
            print(
                f"{stage}: not renewed, {len(unlike)} values differ; `dvc repro` reruns it\n  {shown}{more}"
            )
            continue
        _dvc(home, "commit", "--force", stage)
        print(f"{stage}: renewed, a rerun gives the committed values")
    return agreed


def _dvc(home: Path, *words: str) -> str:
    """What a command of DVC prints in ``home``. UserError with its message where it fails."""
    done = subprocess.run([sys.executable, "-m", "dvc", *words], cwd=home, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"`dvc {' '.join(words)}` failed: {done.stderr.strip()}")
    return done.stdout


def main(arguments: Sequence[str]) -> None:
    """The command line. UserError where a lock was not renewed."""
    parser = argparse.ArgumentParser(prog="python -m studies relock", description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="studies (default: all that DVC calls changed)"
    )
    wanted = parser.parse_args(arguments).names
    for name in wanted:
        study_of(name)
    write_code()
    stages = [stage for stage in stale_stages() if not wanted or stage.split("@")[1] in wanted]
    if not stages:
        print("nothing to renew: DVC calls no study changed")
    elif not relock(stages):
        raise UserError("some locks were not renewed")
