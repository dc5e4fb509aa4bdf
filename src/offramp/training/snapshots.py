"""Snapshots from which an interrupted training goes on as if nothing had happened.

They live outside every DVC output (a persisted output would resume with another configuration's weights):
in ``.resume/<key>``, where the key covers parameters, input digests and code, and are deleted on success.
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


def snapshot_key(identity: dict[str, Any]) -> str:
    """A short name for everything that determines a training's outcome."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]


def code_digest(*packages: Path) -> str:
    """SHA-256 over the Python sources below the given folders: other code must not resume this training."""
    digest = hashlib.sha256()
    for file in sorted(file for package in packages for file in package.rglob("*.py")):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


class Snapshots:
    """The newest snapshot of one training, and scratch files that share its life."""

    def __init__(self, folder: Path, every_seconds: float):
        self.folder, self.every_seconds = folder, every_seconds
        self.folder.mkdir(parents=True, exist_ok=True)
        self._file, self._saved_at = folder / "snapshot.pt", time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self._saved_at >= self.every_seconds

    def save(self, state: dict[str, Any]) -> None:
        """Write atomically: a kill during writing leaves the previous snapshot."""
        partial = self._file.with_suffix(".partial")
        torch.save(state, partial)
        os.replace(partial, self._file)
        self._saved_at = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        if not self._file.exists():
            return None
        return torch.load(self._file, map_location="cpu", weights_only=True)

    def scratch(self, name: str) -> Path:
        return self.folder / name

    def delete(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
