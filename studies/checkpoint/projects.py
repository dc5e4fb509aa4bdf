"""The folders of the study, each a project of the product, and the units of work in them, run one at a time.

A unit is a stage of the product (``python -m pipeline.<stage>`` in the arm's folder) or a step of the study
(``python -m studies.checkpoint.work``), always in a process of its own, whose memory goes when it ends. A
unit that is done is not run again while its key is the same: its parameters, its code, the checkpoint, and
the keys of what it reads. An interrupted training goes on from the product's own snapshots.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from offramp.artifacts.files import write_text
from offramp.errors import UserError
from offramp.lineage.code import code_digest
from offramp.params import load_params
from studies.common.cache import ROOT

LINKED = ("src", "pipeline", "dvc.yaml")
"""What a project shares with the repository: stages take digests of their code."""


@dataclass(frozen=True)
class Project:
    """A folder in which stages of the product run."""

    folder: Path

    def make(self, overrides: Mapping[str, Any]) -> None:
        """Write its parameters: those of the repository with ``overrides`` (dotted names).

        UserError where they do not go together.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in LINKED:
            link = self.folder / name
            if not link.is_symlink():
                link.symlink_to(ROOT / name)
        yaml = YAML()
        values = yaml.load(ROOT / "params.yaml")
        for name, value in overrides.items():
            *sections, key = name.split(".")
            place = values
            for section in sections:
                place = place[section]
            place[key] = value
        text, file = StringIO(), self.folder / "params.yaml"
        yaml.dump(values, text)
        if not file.exists() or file.read_text(encoding="utf-8") != text.getvalue():
            write_text(file, text.getvalue())
        load_params("pretrain", self.folder)

    def link(self, name: str, to: Path) -> None:
        """Let another project's artifact stand in this one."""
        link = self.folder / name
        if not link.is_symlink():
            link.symlink_to(to.resolve())

    def stage_key(self, stage: str, *read: str) -> str:
        """What a stage is known by that reads what has the keys ``read``."""
        params = load_params(stage, self.folder).to_json()
        runtime = load_params(stage, self.folder).runtime
        where = {"device": runtime.device, "threads": runtime.threads}
        return key_of(stage, params, where, code_digest(f"pipeline.{stage}", ROOT), *read)


@dataclass(frozen=True)
class Done:
    """What became of a unit."""

    key: str
    seconds: float
    """Of the run that ended it; less than the whole where ``resumed``."""
    memory_gb: float
    """Of its process."""
    resumed: bool
    ended: str
    """Date and time."""


@dataclass(frozen=True)
class Unit:
    """A piece of work in a project."""

    project: Project
    name: str
    command: Sequence[str]
    """Modules and arguments behind ``python -m``."""
    key: str

    @property
    def label(self) -> str:
        return f"{self.project.folder.name}: {self.name}"

    @property
    def _record(self) -> Path:
        return self.project.folder / "done" / f"{self.name}.json"

    @property
    def done(self) -> Done | None:
        """Its record, if it has been done as it would be done now."""
        if not self._record.exists():
            return None
        record = Done(**json.loads(self._record.read_text()))
        return record if record.key == self.key else None

    def run(self, lock: int | None = None) -> Done:
        """Run it to its end. UserError with the last of what it printed where it fails.

        Its process keeps the open file ``lock``, and so the lock on it, should this one be killed.
        """
        folder = self.project.folder
        log = folder / "logs" / f"{self.name}.log"
        log.parent.mkdir(exist_ok=True)
        code = started([str(self._record.resolve()), self.key, *self.command], folder, log, lock)
        done = self.done
        if code or done is None:
            raise UserError(f"{self.label} failed; see {log}:\n{log.read_text(encoding='utf-8')[-2000:]}")
        return done


def started(arguments: Sequence[str], folder: Path, log: Path, lock: int | None = None) -> int:
    """Run ``studies.checkpoint.process`` in a folder to its end; its exit status.

    Where this process is interrupted, so is that one.
    """
    with log.open("a", encoding="utf-8") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "studies.checkpoint.process", *arguments],
            cwd=folder,
            env=_environment(),
            stdout=output,
            stderr=output,
            pass_fds=() if lock is None else (lock,),
        )
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise


def key_of(*parts: Any) -> str:
    """A name for plain values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _environment() -> dict[str, str]:
    """That of a process: this repository's code first, and no DVC around it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DVC_")}
    path = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    return {**kept, "PYTHONPATH": path, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{kept['PATH']}"}
