"""Snapshots from which an interrupted training goes on as if nothing had happened.

They live outside every DVC output (a persisted output would resume with another configuration's weights): in
``.resume/<key>``, where the key covers parameters, digests of inputs and code, versions and machine. They are
deleted on success.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from offramp.artifacts.files import written_whole
from offramp.errors import writing


def snapshot_key(identity: dict[str, Any]) -> str:
    """A short name for everything that determines a training's outcome."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]


class Snapshots:
    """The newest snapshot of one training, weights it may return to, and scratch files that live as long."""

    def __init__(self, folder: Path, every_seconds: float):
        self.folder, self.every_seconds = folder, every_seconds
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
        _write(self._file, state)
        self._goes_on = _place(state)
        self._needed = {self._kept(returns_to)} if returns_to else set()
        self._saved_at = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        if not self._file.exists():
            return None
        state = _read(self._file)
        self._goes_on = _place(state)
        return state

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
        """Remove everything; the snapshot goes first, as it is of no use without what it returns to."""
        self._file.unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)


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


def _read(file: Path) -> dict[str, Any]:
    return torch.load(file, map_location="cpu", weights_only=True)
