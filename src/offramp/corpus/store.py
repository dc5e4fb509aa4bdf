"""Token streams on disk: one ``<split>.bin`` per split and the table of where each document starts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from offramp.corpus.sources import Piece
from offramp.corpus.split import SPLITS

DOCUMENTS = "documents.parquet"
ROWS = 10_000
"""Documents per row group of the table: how many rows wait in memory."""


@dataclass
class Stream:
    """The token stream of one split while it is written, and what has been written so far."""

    file: BinaryIO
    documents: int = 0
    characters: int = 0
    tokens: int = 0
    """With the end tokens of documents."""
    unknown: int = 0
    """Tokens that are ``<unk>``."""

    def counts(self, window: int) -> dict[str, Any]:
        """Documents, characters, tokens, whole windows of ``window`` tokens, and the rate of unknown tokens.

        ``unknown_rate`` is the share of text tokens (end tokens aside) that are the unknown token.
        """
        return {
            "documents": self.documents,
            "characters": self.characters,
            "tokens": self.tokens,
            "windows": max(0, self.tokens - 1) // window,
            "unknown_rate": self.unknown / max(1, self.tokens - self.documents),
        }


def stream_file(split: str) -> str:
    """The name of a split's token stream within a data artifact."""
    return f"{split}.bin"


def token_dtype(vocab_size: int) -> np.dtype:
    """Token ids on disk: little-endian uint16 where every id of the vocabulary fits, else uint32."""
    return np.dtype("<u2" if vocab_size <= 2**16 else "<u4")


def write_streams(
    folder: Path,
    pieces: Iterable[Piece],
    splits: np.ndarray,
    encode: Callable[[str], np.ndarray],
    dtype: np.dtype,
    end_id: int | None,
    unknown_id: int | None,
) -> dict[str, Stream]:
    """Write the token streams of all splits and the table of documents, in one pass over ``pieces``.

    ``splits`` (documents,) are indices into SPLITS; ``encode`` gives the token ids (N,) of a piece's text.
    The token ``end_id``, where there is one, is written after every document; ``unknown_id`` is counted.
    Returns the streams with their counts, by split. Memory is a few buffers, however long the text.
    """
    end = np.asarray([] if end_id is None else [end_id], dtype=dtype)
    with ExitStack() as stack:
        files = {split: stack.enter_context(open(folder / stream_file(split), "wb")) for split in SPLITS}
        streams = {split: Stream(file) for split, file in files.items()}
        table = stack.enter_context(_DocumentTable(folder / DOCUMENTS))
        for document, group in groupby(pieces, key=attrgetter("document")):
            split = SPLITS[splits[document]]
            stream = streams[split]
            start = stream.tokens
            for piece in group:
                ids = encode(piece.text)
                stream.file.write(ids.astype(dtype).data)
                stream.characters += len(piece.text)
                stream.tokens += len(ids)
                if unknown_id is not None:
                    stream.unknown += int(np.count_nonzero(ids == unknown_id))
            stream.file.write(end.data)
            stream.tokens += len(end)
            table.add(split, stream.documents, start, stream.tokens - start, piece.name)
            stream.documents += 1
    return streams


class _DocumentTable:
    """documents.parquet, written a row group at a time."""

    COLUMNS: ClassVar = {
        "split": pa.string(),
        "document": pa.int64(),
        "start": pa.int64(),
        "tokens": pa.int64(),
        "name": pa.string(),
    }

    def __init__(self, path: Path):
        self._schema = pa.schema(self.COLUMNS)
        self._writer = pq.ParquetWriter(path, self._schema)
        self._rows: list[tuple[str | int, ...]] = []

    def __enter__(self) -> _DocumentTable:
        return self

    def __exit__(self, *_: object) -> None:
        self._flush()
        self._writer.close()

    def add(self, *row: str | int) -> None:
        self._rows.append(row)
        if len(self._rows) == ROWS:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.table(list(map(list, zip(*self._rows))), schema=self._schema))
            self._rows.clear()
