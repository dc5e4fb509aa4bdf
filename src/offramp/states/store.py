"""The ``states`` artifact of a split: a table of its tokens, hidden states after every block, readouts.

``tokens.parquet``: document, sequence, position, token, target, and per exit k ``<statistic>_k`` (see
``states.statistics``). ``hidden_<k>-<shard>.safetensors``: row i of all shards together is row i of the
table. ``readout.safetensors``: ``matrix_<k>`` (V, D), or one ``matrix_0`` that all exits share, and, for
pre-norm models, ``norm_<k>`` (D). A checkpoint's states have no such file, since its readouts are in the
checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from offramp.artifacts.artifact import Artifact
from offramp.artifacts.files import readable
from offramp.errors import UserError, writing
from offramp.states.statistics import SATURATION, STATISTICS

TABLE, READOUT = "tokens.parquet", "readout.safetensors"


class StatesWriter:
    """Writes states to a folder as they come, a shard of ``shard_tokens`` at a time.

    Memory holds one shard, in buffers that are used again, whatever the number of tokens. Several writers may
    fill one folder, each from another ``first_shard``; ``join_tables`` then makes one table of theirs.
    ``dtype`` is that of hidden states on disk.
    """

    def __init__(self, folder: Path, num_exits: int, dtype: str, shard_tokens: int, first_shard: int = 0):
        self.folder, self.num_exits = folder, num_exits
        self.shard_tokens, self.first_shard = shard_tokens, first_shard
        self.dtype = getattr(torch, dtype)
        self.tokens = self.shards = 0
        self._pending = 0
        self._hidden: Tensor | None = None
        self._columns: dict[str, np.ndarray] = {}
        self._table: pq.ParquetWriter | None = None

    def add(self, columns: dict[str, np.ndarray], hidden: list[Tensor]) -> None:
        """Add tokens: columns (N,) of the table, and per exit hidden states (N, D).

        No later call may bring more tokens than the first. UserError for states that do not fit the
        ``dtype``.
        """
        rows = len(columns["token"])
        if self._hidden is None:
            size = max(self.shard_tokens, rows)
            self._hidden = torch.empty(self.num_exits, size, hidden[0].shape[1], dtype=self.dtype)
            self._columns = {name: np.empty(size, values.dtype) for name, values in columns.items()}
        if self._pending + rows > self._hidden.shape[1]:
            self._flush(self._hidden)
        place = slice(self._pending, self._pending + rows)
        for exit, states in enumerate(hidden):
            smallest, largest = torch.aminmax(states)
            # "not <=" is also true of NaN
            if not max(-smallest.item(), largest.item()) <= torch.finfo(self.dtype).max:
                raise UserError(
                    f"collect: hidden states after block {exit} do not fit {self.dtype} "
                    f"(largest {states.abs().max():.3g}); set collect.dtype: float32"
                )
            self._hidden[exit, place] = states.cpu()
        for name, values in columns.items():
            self._columns[name][place] = values
        self._pending += rows

    def close(self) -> None:
        """Write what is left; nothing can be added afterwards."""
        if self._pending and self._hidden is not None:
            self._flush(self._hidden)
        if self._table:
            self._table.close()

    def _flush(self, hidden: Tensor) -> None:
        number = self.first_shard + self.shards
        for exit in range(self.num_exits):
            states, file = (
                hidden[exit, : self._pending],
                self.folder / f"hidden_{exit}-{number:05d}.safetensors",
            )
            with writing(file, states.nbytes):
                save_file({"hidden": states}, file)
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
    """The batches with which a StatesWriter begins a shard, where batch i brings ``batch_rows[i]`` tokens."""
    starts, pending = [0], 0
    size = max(shard_tokens, batch_rows[0])
    for batch, rows in enumerate(batch_rows):
        if pending + rows > size:
            starts.append(batch)
            pending = 0
        pending += rows
    return starts


def join_tables(folder: Path) -> None:
    """Join the tables that several writers left in a folder to the one that a single writer would write."""
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
    """An opened ``states`` artifact: statistics and hidden states of every token of a split at every exit."""

    def __init__(self, artifact: Artifact):
        self.artifact = artifact
        self.num_exits: int = artifact.meta["exits"]
        self.num_tokens: int = artifact.meta["tokens"]
        self.window: int = artifact.meta["window"]
        with readable(artifact.file(TABLE)) as file:
            self._known = pq.read_schema(file).names

    @property
    def precision(self) -> str:
        """The precision in which the model's layers ran, fp32 or bf16; UserError where it is not recorded.

        What is measured beside these states runs in the same.
        """
        if "precision" not in self.artifact.meta:
            raise UserError(
                f"{self.artifact.path} does not say in which precision the model ran; "
                "run `dvc repro` to make it again"
            )
        return self.artifact.meta["precision"]

    def column(self, name: str) -> np.ndarray:
        """One column of the token table, (num_tokens,); UserError where there is no such column."""
        if name not in self._known:
            raise UserError(f"{self.artifact.path} has no column {name!r}; it has {', '.join(self._known)}")
        with readable(self.artifact.file(TABLE)) as file:
            return pq.read_table(file, columns=[name])[name].to_numpy()

    def divergence(self, exit: int) -> np.ndarray:
        """KL(full depth || exit) of every token, (num_tokens,) in nats: 0 at full depth itself."""
        if exit == self.num_exits - 1:
            return np.zeros(self.num_tokens, np.float32)
        return self.column(f"divergence_{exit}")

    def statistics(self, exit: int) -> np.ndarray:
        """The label-free statistics of one exit, (num_tokens, 5), in the order of STATISTICS."""
        return np.stack([self.column(f"{name}_{exit}") for name in STATISTICS], axis=1)

    def label_free(self, exit: int) -> dict[str, np.ndarray]:
        """What a confidence signal may look at besides the hidden state: named arrays (num_tokens,).

        They are the STATISTICS of its readout, ``saturation``, and ``patience``: how many exits in a row
        before it have the same argmax, as a share of all exits before it.
        """
        out = {name: self.column(f"{name}_{exit}") for name in (*STATISTICS, SATURATION)}
        argmax, streak = self.column(f"argmax_{exit}"), np.zeros(self.num_tokens, np.float32)
        unbroken = np.ones(self.num_tokens, bool)
        for earlier in reversed(range(exit)):
            unbroken &= self.column(f"argmax_{earlier}") == argmax
            streak += unbroken
        return out | {"patience": streak / max(1, exit)}

    def readouts(self) -> dict[str, Tensor]:
        """The tensors of ``readout.safetensors`` by name; UserError where the states are a checkpoint's."""
        if not self.artifact.has(READOUT):
            raise UserError(
                f"{self.artifact.path} holds states of a checkpoint, whose readouts are not kept with them; "
                "give states of a native model"
            )
        with readable(self.artifact.file(READOUT)) as file:
            return load_file(file)

    def hidden_shards(self, exit: int) -> Iterator[Tensor]:
        """Hidden states after block ``exit`` as stored, shard by shard: each (tokens of the shard, D)."""
        for shard in range(self.artifact.meta["shards"]):
            with readable(self.artifact.file(f"hidden_{exit}-{shard:05d}.safetensors")) as file:
                hidden = load_file(file)["hidden"]
            yield hidden

    def hidden_spans(self, exit: int, spans: Sequence[tuple[int, int]]) -> Tensor:
        """Hidden states after block ``exit`` as stored, of the tokens a to b - 1 of every span (a, b).

        Nothing else is read. Spans are not empty, come in the order of the text and do not overlap; their
        tokens stand in one tensor, in that order.
        """
        total = sum(end - begin for begin, end in spans)
        out = torch.empty(
            total, self.artifact.meta["width"], dtype=getattr(torch, self.artifact.meta["dtype"])
        )
        following, start, done = iter(spans), 0, 0
        begin, end = next(following)
        for shard in range(self.artifact.meta["shards"]):
            with (
                readable(self.artifact.file(f"hidden_{exit}-{shard:05d}.safetensors")) as file,
                safe_open(file, "pt") as tensors,
            ):
                stored = tensors.get_slice("hidden")
                stop = start + stored.get_shape()[0]
                while begin < stop:
                    upto = min(end, stop)
                    out[done : done + upto - begin] = stored[begin - start : upto - start]
                    done += upto - begin
                    begin, end = (upto, end) if upto < end else next(following, (self.num_tokens,) * 2)
            start = stop
        return out

    def hidden(self, exit: int, rows: np.ndarray | None = None) -> Tensor:
        """Hidden states (N, D), float32, after block ``exit``: of tokens in the mask ``rows``, or of all."""
        parts, start = [], 0
        for shard in self.hidden_shards(exit):
            keep = slice(None) if rows is None else torch.from_numpy(rows[start : start + len(shard)])
            parts.append(shard[keep].float())
            start += len(shard)
        return torch.cat(parts)
