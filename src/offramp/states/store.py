"""The ``states`` artifact: one row per token, hidden states after every block, and the readouts, of one split.

``tokens.parquet``: document, sequence, position, token, target, and per exit k ``<statistic>_k`` (see
``states.statistics``). ``hidden_<k>-<shard>.safetensors``: row i of all shards together is row i of the table.
``readout.safetensors``: ``matrix_<k>`` (V, D) and, for pre-norm models, ``norm_<k>`` (D).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from offramp.errors import UserError
from offramp.lineage.artifact import Artifact
from offramp.states.statistics import STATISTICS

ID_COLUMNS = ("document", "sequence", "position", "token", "target")


class StatesWriter:
    """Streams rows to disk a shard at a time, so memory holds one shard whatever the number of tokens."""

    def __init__(self, folder: Path, num_exits: int, dtype: str, shard_tokens: int):
        self.folder, self.num_exits, self.shard_tokens = folder, num_exits, shard_tokens
        self.dtype = getattr(torch, dtype)
        self.tokens = self.shards = 0
        self._hidden: list[list[Tensor]] = [[] for _ in range(num_exits)]
        self._columns: list[dict[str, np.ndarray]] = []
        self._pending = 0
        self._table: pq.ParquetWriter | None = None

    def add(self, columns: dict[str, np.ndarray], hidden: list[Tensor]) -> None:
        """Columns (N,) and, per exit, hidden states (N, D)."""
        for exit, states in enumerate(hidden):
            stored = states.to(self.dtype)
            if not torch.isfinite(stored).all():
                raise UserError(
                    f"collect: hidden states after block {exit} do not fit {self.dtype} (largest {states.abs().max():.3g}); "
                    "set collect.dtype: float32"
                )
            self._hidden[exit].append(stored.cpu())
        self._columns.append(columns)
        self._pending += len(columns["token"])
        if self._pending >= self.shard_tokens:
            self._flush()

    def close(self) -> None:
        if self._pending:
            self._flush()
        if self._table:
            self._table.close()

    def _flush(self) -> None:
        for exit in range(self.num_exits):
            save_file({"hidden": torch.cat(self._hidden[exit])}, self.folder / f"hidden_{exit}-{self.shards:05d}.safetensors")
            self._hidden[exit] = []
        table = pa.table({name: np.concatenate([part[name] for part in self._columns]) for name in self._columns[0]})
        if self._table is None:
            self._table = pq.ParquetWriter(self.folder / "tokens.parquet", table.schema, compression="NONE",
                                           use_dictionary=False)
        self._table.write_table(table)
        self.tokens += self._pending
        self.shards += 1
        self._columns, self._pending = [], 0


class States:
    """An opened ``states`` artifact."""

    def __init__(self, artifact: Artifact):
        self.artifact = artifact
        self.num_exits: int = artifact.meta["exits"]
        self.num_tokens: int = artifact.meta["tokens"]
        self.window: int = artifact.meta["window"]
        self._known = pq.read_schema(artifact.file("tokens.parquet")).names

    def column(self, name: str) -> np.ndarray:
        """One column of the token table, (num_tokens,)."""
        if name not in self._known:
            raise UserError(f"{self.artifact.path} has no column {name!r}; it has {', '.join(self._known)}")
        return pq.read_table(self.artifact.file("tokens.parquet"), columns=[name])[name].to_numpy()

    def statistics(self, exit: int) -> np.ndarray:
        """The label-free statistics of one exit, (num_tokens, 5), in the order of STATISTICS."""
        return np.stack([self.column(f"{name}_{exit}") for name in STATISTICS], axis=1)

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
