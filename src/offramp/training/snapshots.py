"""Snapshots from which an interrupted training goes on as if nothing had happened.

They live outside every DVC output (a persisted output would resume with another configuration's weights): in
``.resume/<key>``, where the key covers parameters, digests of inputs and code, versions and machine. They are
deleted on success.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch
from torch import Tensor

from offramp.artifacts.files import written_whole
from offramp.errors import writing

GONE = ".gone"
"""How the name of a folder ends that is being removed."""
RETURNS_TO = "returns_to"


def snapshot_key(identity: dict[str, Any]) -> str:
    """A short name for everything that determines a training's outcome."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]


class Snapshots:
    """The newest snapshot of one training, weights it may return to, and scratch files that live as long."""

    def __init__(self, folder: Path, every_seconds: float):
        self.folder, self.every_seconds = folder, every_seconds
        for left in folder.parent.glob(f"*{GONE}"):  # by a kill in the midst of ``delete``
            shutil.rmtree(left, ignore_errors=True)
        with writing(folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._goes_on: str | None = None
        self._file, self._saved_at = folder / "snapshot.pt", time.monotonic()
        self._needed = set(folder.glob("kept_*.pt"))
        """Kept weights that the snapshot on disk returns to."""

    def due(self) -> bool:
        return time.monotonic() - self._saved_at >= self.every_seconds

    @property
    def goes_on(self) -> str | None:
        """Where an interrupted training goes on, in words; None where it begins again."""
        return self._goes_on

    def save(self, state: dict[str, Any], returns_to: str | None = None) -> None:
        """Write atomically: a kill during writing leaves the previous snapshot.

        ``returns_to`` is the name of the kept weights that the snapshot needs.
        """
        _write(self._file, {**state, RETURNS_TO: returns_to})
        self._goes_on = _place(state)
        self._needed = {self._kept(returns_to)} if returns_to else set()
        self._saved_at = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """The newest snapshot; None where there is none, or where it or what it returns to is damaged."""
        if not self._file.exists():
            return None
        if (state := self._whole()) is None:
            logging.warning("the snapshot %s is damaged: the training begins again", self._file)
            self._file.unlink(missing_ok=True)  # several processes may see it
            return None
        self._goes_on = _place(state)
        return state

    def _whole(self) -> dict[str, Any] | None:
        if not _is_whole(self._file):
            return None
        state = _read(self._file)
        returns_to = state.pop(RETURNS_TO)
        return state if returns_to is None or _is_whole(self._kept(returns_to)) else None

    def keep(self, name: str, weights: dict[str, Tensor]) -> None:
        """Write weights to return to: on disk they cost no memory.

        Those kept before are removed, but for what the snapshot needs.
        """
        _write(self._kept(name), weights)
        for file in self.folder.glob("kept_*.pt"):
            if file != self._kept(name) and file not in self._needed:
                file.unlink()

    def kept(self, name: str) -> dict[str, Tensor]:
        return _read(self._kept(name))

    def _kept(self, name: str) -> Path:
        return self.folder / f"kept_{name}.pt"

    def scratch(self, name: str) -> Path:
        return self.folder / name

    def delete(self) -> None:
        """Remove everything, as if at once: of a part of it a training would go on with what is missing."""
        gone = self.folder.with_name(f"{self.folder.name}{GONE}")
        with suppress(FileNotFoundError):
            os.replace(self.folder, gone)
        shutil.rmtree(gone, ignore_errors=True)


def _write(file: Path, state: dict[str, Any]) -> None:
    # through a file of Python's: torch's own writer does not say what the system told it
    with written_whole(file, _size(state)) as partial, open(partial, "wb") as out:
        torch.save(state, out)


def _size(value: Any) -> int:
    """Bytes of all tensors in nested mappings and lists."""
    if isinstance(value, Tensor):
        return value.nbytes
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else ()
    return sum(map(_size, parts))


def _place(state: dict[str, Any]) -> str | None:
    progress = state.get("progress", {})
    if "step" not in progress:
        return None
    phase = f" of phase {progress['phase'] + 1}" if progress.get("phase") else ""
    return f"step {progress['step']}{phase}"


def _is_whole(file: Path) -> bool:
    """Whether every record of a file has the checksum that was written with it; torch.load does not ask."""
    try:
        with ZipFile(file) as records:
            return records.testzip() is None
    except (BadZipFile, FileNotFoundError):
        return False


def _read(file: Path) -> dict[str, Any]:
    return torch.load(file, map_location="cpu", weights_only=True)
