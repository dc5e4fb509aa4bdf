"""The ``states`` artifact: one row per token, hidden states after every block, and the readouts, of one split.

``tokens.parquet``: document, sequence, position, token, target, and per exit k ``<statistic>_k`` (see
``states.statistics``). ``hidden_<k>-<shard>.safetensors``: row i of all shards together is row i of the table.
``readout.safetensors``: ``matrix_<k>`` (V, D), or one ``matrix_0`` that all exits share, and, for pre-norm models,
``norm_<k>`` (D); not there for checkpoints, whose readouts are theirs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from offramp.artifacts.artifact import Artifact
from offramp.errors import UserError
from offramp.states.statistics import SATURATION, STATISTICS

TABLE, READOUT = "tokens.parquet", "readout.safetensors"
ID_COLUMNS = ("document", "sequence", "position", "token", "target")


class StatesWriter:
    """Streams rows to disk a shard at a time; memory holds one shard, in buffers used again, whatever the number of tokens.

    Several writers may fill one folder, each from a ``first_shard`` of its own; ``join_tables`` then makes their tables one.
    """

    def __init__(self, folder: Path, num_exits: int, dtype: str, shard_tokens: int, first_shard: int = 0):
        self.folder, self.num_exits, self.shard_tokens, self.first_shard = (
            folder,
            num_exits,
            shard_tokens,
            first_shard,
        )
        self.dtype = getattr(torch, dtype)
        self.tokens = self.shards = 0
        self._pending = 0
        self._hidden: Tensor | None = None
        self._columns: dict[str, np.ndarray] = {}
        self._table: pq.ParquetWriter | None = None

    def add(self, columns: dict[str, np.ndarray], hidden: list[Tensor]) -> None:
        """Columns (N,) and, per exit, hidden states (N, D); no later call may bring more rows than the first."""
        rows = len(columns["token"])
        if self._hidden is None:
            size = max(self.shard_tokens, rows)
            self._hidden = torch.empty(self.num_exits, size, hidden[0].shape[1], dtype=self.dtype)
            self._columns = {name: np.empty(size, values.dtype) for name, values in columns.items()}
        if self._pending + rows > self._hidden.shape[1]:
            self._flush()
        here = slice(self._pending, self._pending + rows)
        for exit, states in enumerate(hidden):
            smallest, largest = torch.aminmax(states)
            if (
                not max(-smallest.item(), largest.item()) <= torch.finfo(self.dtype).max
            ):  # also where it is NaN
                raise UserError(
                    f"collect: hidden states after block {exit} do not fit {self.dtype} (largest {states.abs().max():.3g}); "
                    "set collect.dtype: float32"
                )
            self._hidden[exit, here] = states.cpu()
        for name, values in columns.items():
            self._columns[name][here] = values
        self._pending += rows

    def close(self) -> None:
        if self._pending:
            self._flush()
        if self._table:
            self._table.close()

    def _flush(self) -> None:
        number = self.first_shard + self.shards
        for exit in range(self.num_exits):
            save_file(
                {"hidden": self._hidden[exit, : self._pending]},
                self.folder / f"hidden_{exit}-{number:05d}.safetensors",
            )
        table = pa.table({name: values[: self._pending] for name, values in self._columns.items()})
        if self._table is None:
            self._table = _open_table(
                self.folder / (f"tokens-{number:05d}.parquet" if number else TABLE), table.schema
            )
        self._table.write_table(table)
        self.tokens += self._pending
        self.shards += 1
        self._pending = 0


def shard_starts(batch_rows: Sequence[int], shard_tokens: int) -> list[int]:
    """Which batches begin a shard where a StatesWriter is given batches of so many rows."""
    starts, pending = [0], 0
    size = max(shard_tokens, batch_rows[0])
    for batch, rows in enumerate(batch_rows):
        if pending + rows > size:
            starts.append(batch)
            pending = 0
        pending += rows
    return starts


def join_tables(folder: Path) -> None:
    """One table of those that several writers left, with the bytes that a single writer would have written."""
    parts = sorted(folder.glob("tokens-*.parquet"))
    if not parts:
        return
    parts.insert(0, (folder / TABLE).rename(folder / "tokens-00000.parquet"))
    with _open_table(folder / TABLE, pq.read_schema(parts[0])) as table:
        for part in parts:
            with pq.ParquetFile(part) as file:
                for group in range(file.num_row_groups):
                    table.write_table(file.read_row_group(group))
            part.unlink()


def _open_table(file: Path, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(file, schema, compression="NONE", use_dictionary=False)


class States:
    """An opened ``states`` artifact."""

    def __init__(self, artifact: Artifact):
        self.artifact = artifact
        self.num_exits: int = artifact.meta["exits"]
        self.num_tokens: int = artifact.meta["tokens"]
        self.window: int = artifact.meta["window"]
        self._known = pq.read_schema(artifact.file(TABLE)).names

    @property
    def precision(self) -> str:
        """Of the model's layers (fp32 or bf16): what is measured beside these states runs in it, too."""
        if "precision" not in self.artifact.meta:
            raise UserError(
                f"{self.artifact.path} does not say in which precision the model ran; run `dvc repro` to make it again"
            )
        return self.artifact.meta["precision"]

    def column(self, name: str) -> np.ndarray:
        """One column of the token table, (num_tokens,)."""
        if name not in self._known:
            raise UserError(f"{self.artifact.path} has no column {name!r}; it has {', '.join(self._known)}")
        return pq.read_table(self.artifact.file(TABLE), columns=[name])[name].to_numpy()

    def statistics(self, exit: int) -> np.ndarray:
        """The label-free statistics of one exit, (num_tokens, 5), in the order of STATISTICS."""
        return np.stack([self.column(f"{name}_{exit}") for name in STATISTICS], axis=1)

    def label_free(self, exit: int) -> dict[str, np.ndarray]:
        """What a confidence signal may look at besides the state: named arrays (num_tokens,) of one exit.

        The STATISTICS of its readout, ``saturation``, and ``patience``: the share of the exits before it, counted back
        without a gap, whose argmax is this one's.
        """
        out = {name: self.column(f"{name}_{exit}") for name in (*STATISTICS, SATURATION)}
        own, streak = self.column(f"argmax_{exit}"), np.zeros(self.num_tokens, np.float32)
        unbroken = np.ones(self.num_tokens, bool)
        for earlier in reversed(range(exit)):
            unbroken &= self.column(f"argmax_{earlier}") == own
            streak += unbroken
        return out | {"patience": streak / max(1, exit)}

    def readouts(self) -> dict[str, Tensor]:
        """The readouts of all exits; UserError where the states are a checkpoint's."""
        file = self.artifact.file(READOUT)
        if not file.exists():
            raise UserError(
                f"{self.artifact.path} holds states of a checkpoint, whose readouts are not kept with them; "
                "give states of a native model"
            )
        return load_file(file)

    def hidden_shards(self, exit: int) -> Iterator[Tensor]:
        """Hidden states after block ``exit``, shard by shard, as stored: (n, D)."""
        for shard in range(self.artifact.meta["shards"]):
            yield load_file(self.artifact.file(f"hidden_{exit}-{shard:05d}.safetensors"))["hidden"]

    def hidden(self, exit: int, rows: np.ndarray | None = None) -> Tensor:
        """Hidden states (rows, D) float32 after block ``exit``; ``rows`` is a mask over all tokens."""
        parts, start = [], 0
        for shard in self.hidden_shards(exit):
            keep = slice(None) if rows is None else torch.from_numpy(rows[start : start + len(shard)])
            parts.append(shard[keep].float())
            start += len(shard)
        return torch.cat(parts)
