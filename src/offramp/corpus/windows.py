"""Token windows of a data artifact, read from disk as they are asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from offramp.artifacts.artifact import Artifact
from offramp.artifacts.files import readable
from offramp.corpus.split import SPLITS
from offramp.corpus.store import DOCUMENTS, stream_file

Indices = Sequence[int] | np.ndarray | Tensor


class TokenWindows:
    """The windows of one split of a data artifact, without overlap: window i reads tokens i*T .. i*T+T-1.

    Each token's target is the token after it, in the last place that of the next window. What is left of the
    stream after the last whole window and its target is not used. Shapes: B indices, T tokens per window.
    ValueError for a split that does not exist.
    """

    def __init__(self, data: Artifact, split: str):
        if split not in SPLITS:
            raise ValueError(f"split {split!r}: not one of {', '.join(SPLITS)}")
        self.window: int = data.meta["window"]
        self.vocab_size: int = data.meta["vocab_size"]
        dtype = np.dtype(data.meta["dtype"]).newbyteorder("<")
        with readable(data.file(stream_file(split))) as file:
            self._stream = np.memmap(file, dtype=dtype, mode="r")
            if len(self) < 1:
                raise ValueError(f"it has no window of {self.window} tokens")
        with readable(data.file(DOCUMENTS)) as file:
            table = pq.read_table(file, columns=["start"], filters=[("split", "=", split)])
            self._starts = table["start"].to_numpy()

    def __len__(self) -> int:
        return (len(self._stream) - 1) // self.window

    def batch(self, indices: Indices) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, T), int64; IndexError for an index that is not in 0 .. len - 1."""
        places = self._places(indices, self.window + 1)
        tokens = torch.from_numpy(self._stream[places].astype(np.int64))
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def documents(self, indices: Indices) -> np.ndarray:
        """(B, T) int64: the document, counted within the split, that each input token belongs to."""
        places = self._places(indices, self.window)
        return np.searchsorted(self._starts, places, side="right").astype(np.int64) - 1

    def _places(self, indices: Indices, length: int) -> np.ndarray:
        indices = np.asarray(indices, dtype=np.int64)
        if indices.size and (indices.min() < 0 or indices.max() >= len(self)):
            raise IndexError(
                f"window indices must be from 0 to {len(self) - 1}, got {indices.min()} to {indices.max()}"
            )
        return indices[:, None] * self.window + np.arange(length)
