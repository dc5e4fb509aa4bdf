"""Snapshots from which an interrupted training goes on as if nothing had happened.

They live outside every DVC output (a persisted output would resume with another configuration's weights): in
``.resume/<key>``, where the key covers parameters, digests of inputs and code, versions and machine. They are
deleted on success.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def snapshot_key(identity: dict[str, Any]) -> str:
    """A short name for everything that determines a training's outcome."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]


class Snapshots:
    """The newest snapshot of one training, weights it may return to, and scratch files that live as long."""

    def __init__(self, folder: Path, every_seconds: float):
        self.folder, self.every_seconds = folder, every_seconds
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file, self._saved_at = folder / "snapshot.pt", time.monotonic()
        self._needed = set(folder.glob("kept_*.pt"))
        """Kept weights that the snapshot on disk returns to."""

    def due(self) -> bool:
        return time.monotonic() - self._saved_at >= self.every_seconds

    def save(self, state: dict[str, Any], returns_to: str | None = None) -> None:
        """Write atomically: a kill during writing leaves the previous snapshot.

        ``returns_to`` is the name of the kept weights that the snapshot needs.
        """
        _write(self._file, state)
        self._needed = {self._kept(returns_to)} if returns_to else set()
        self._saved_at = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        return _read(self._file) if self._file.exists() else None

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

    def save_beside(self, name: str, state: dict[str, Any]) -> None:
        """Write, atomically, a state that is no part of the snapshot: of work that comes before the steps."""
        _write(self.folder / f"{name}.pt", state)

    def load_beside(self, name: str) -> dict[str, Any] | None:
        """What ``save_beside`` wrote last under that name, if anything."""
        file = self.folder / f"{name}.pt"
        return _read(file) if file.exists() else None

    def _kept(self, name: str) -> Path:
        return self.folder / f"kept_{name}.pt"

    def scratch(self, name: str) -> Path:
        return self.folder / name

    def delete(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def _write(file: Path, state: dict[str, Any]) -> None:
    partial = file.with_suffix(".partial")
    torch.save(state, partial)
    os.replace(partial, file)


def _read(file: Path) -> dict[str, Any]:
    return torch.load(file, map_location="cpu", weights_only=True)
