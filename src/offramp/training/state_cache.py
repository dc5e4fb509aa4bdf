"""Hidden states of whole windows on disk, to train on as often as it pays: the model runs once.

A state is kept in half precision beside its root mean square, so that states of any size fit; what is read
back differs from it by a part in two thousand. Reading and writing go window by window, wherever in the file
it is, and memory holds a batch, whatever the number of windows.

Shapes: S windows, B windows of a batch, K exits with full depth, T tokens of a window, D width, M entries.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offramp.errors import UserError, writing

TINY = 1e-30
"""Root mean square of a state that is zero."""


@dataclass(frozen=True)
class _Table:
    """A file of one array per window."""

    file: Path
    shape: tuple[int, ...]
    """Of a window's array."""
    dtype: np.dtype[Any]

    @property
    def bytes_per_window(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def write(self, first: int, values: Tensor) -> None:
        rows = values.cpu().numpy().astype(self.dtype).tobytes()  # tofile() hides what the system says
        with writing(self.file, len(rows)), open(self.file, "r+b") as file:
            file.seek(first * self.bytes_per_window)
            file.write(rows)

    def read(self, windows: list[int]) -> Tensor:
        out = np.empty((len(windows), *self.shape), self.dtype)
        with open(self.file, "rb") as file:
            for place, window in enumerate(windows):
                file.seek(window * self.bytes_per_window)
                out[place] = np.fromfile(file, self.dtype, prod(self.shape)).reshape(self.shape)
        return torch.from_numpy(out)


def _has(file: Path, size: int) -> bool:
    """Whether a file is there and was not left by a kill before it had its size."""
    return file.is_file() and file.stat().st_size == size


@dataclass(frozen=True)
class StateCache:
    """States of ``windows`` windows at ``exits`` exits, and ``entries`` entries of the vocabulary per token.

    Several processes may write to one cache, each its own windows, once one of them has made it.
    """

    folder: Path
    windows: int
    window: int
    exits: int
    width: int
    entries: int

    @cached_property
    def _tables(self) -> dict[str, _Table]:
        shapes = {
            "scales": ((self.exits, self.window), "<f4"),
            "entries": ((self.window, self.entries), "<i4"),
        }
        shapes |= {f"states_{exit}": ((self.window, self.width), "<f2") for exit in range(self.exits)}
        return {
            name: _Table(self.folder / f"{name}.bin", shape, np.dtype(dtype))
            for name, (shape, dtype) in shapes.items()
        }

    def make(self, field: str) -> bool:
        """Make the files, or keep those that are there; whether all of them were.

        UserError, naming the ``field`` that says how many tokens, where the disk has no room.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        sizes = {table.file: self.windows * table.bytes_per_window for table in self._tables.values()}
        missing = {file: size for file, size in sizes.items() if not _has(file, size)}
        if sum(missing.values()) > (free := shutil.disk_usage(self.folder).free):
            raise UserError(
                f"{field}: the states of {self.windows * self.window} tokens take "
                f"{sum(missing.values()) / 1e9:.1f} GB in {self.folder}, and {free / 1e9:.1f} GB are free; "
                "lower it or make room"
            )
        for file, size in missing.items():
            with writing(file, size), open(file, "wb") as out:
                os.truncate(out.fileno(), size)
        return not missing

    def write(self, first: int, states: list[Tensor], entries: Tensor) -> None:
        """Write B windows from number ``first`` on: states (B, T, D) of every exit, entries (B, T, M).

        UserError where a state is not finite.
        """
        scales = []
        for exit, x in enumerate(states):
            scale = x.square().mean(-1).sqrt().clamp_min(TINY)
            if not torch.isfinite(scale).all():
                raise UserError(
                    f"pretrain: hidden states after block {exit} are not finite numbers; set "
                    "pretrain.precision: fp32, or choose another checkpoint"
                )
            self._tables[f"states_{exit}"].write(first, x / scale.unsqueeze(-1))
            scales.append(scale)
        self._tables["scales"].write(first, torch.stack(scales, dim=1))
        self._tables["entries"].write(first, entries)

    def states(self, windows: Tensor) -> list[Tensor]:
        """States (B, T, D), float32, of the windows with the given numbers, at every exit."""
        places = windows.tolist()
        scales = self._tables["scales"].read(places)
        return [
            self._tables[f"states_{exit}"].read(places).float() * scales[:, exit].unsqueeze(-1)
            for exit in range(self.exits)
        ]

    def entries_of(self, windows: Tensor) -> Tensor:
        """Entries of the vocabulary (B, T, M) of the windows with the given numbers."""
        return self._tables["entries"].read(windows.tolist()).long()
