"""What an exit classifier is fitted to: a row per token, held in memory or, where that is much, on disk.

A fit asks for two things: all rows in the order of the text, part by part, and all rows in random order,
batch by batch. Rows that fit ``HELD`` are held, and their random order is one permutation of all. Of more
rows ``HELD`` is filled again and again: runs of ``RUN`` tokens that stand together are drawn from all over
the text, read in one piece each, and shuffled token by token. So memory does not grow with the text, and
reading is fast on any disk. An epoch is every row once either way.

Shapes: N tokens, B of a batch, D width of states, I inputs of a classifier.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from offramp.exits.classifier import classifier_inputs
from offramp.states.statistics import STATISTICS
from offramp.states.store import States

HELD = 2**28
"""Bytes of float32 rows that are held in memory at a time."""
RUN = 128
"""Tokens that are read in one piece."""
PARTS = 4
"""Parts that HELD rows are computed with in: a classifier needs room for the activations of one."""


def rows_held(width: int, held: int = HELD) -> int:
    """How many rows of so many float32 numbers ``held`` bytes take, a few runs at least."""
    return max(PARTS * RUN, held // (4 * width))


class Inputs(Protocol):
    """Inputs (N, I), float32, of N tokens."""

    width: int
    """I."""
    device: torch.device
    """Where rows are handed out, and their places with them."""

    def __len__(self) -> int:
        """N."""
        ...

    def parts(self) -> Iterator[Tensor]:
        """All rows in order, in parts of a bounded size: each (rows of the part, I)."""
        ...

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean (I,) and standard deviation (I,) of the rows."""
        ...

    def shuffled(self, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Every row once, in random order: places (B,), counted from 0, and rows (B, I), of every batch."""
        ...


class HeldInputs:
    """Inputs (N, I) that are in memory."""

    def __init__(self, rows: Tensor):
        self.rows = rows
        self.width, self.device = rows.shape[1], rows.device

    def __len__(self) -> int:
        return len(self.rows)

    def parts(self) -> Iterator[Tensor]:
        yield from self.rows.split(rows_held(self.width) // PARTS)

    def moments(self) -> tuple[Tensor, Tensor]:
        return self.rows.mean(0), self.rows.std(0)

    def shuffled(self, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        for places in torch.randperm(len(self.rows), generator=generator).split(batch_size):
            places = places.to(self.device)
            yield places, self.rows[places]


class StoredInputs:
    """Inputs of the tokens in the mask ``chosen`` (num_tokens,) of a states artifact, read when asked for.

    ``which`` is what a classifier sees at ``exit``: ``state``, ``statistics`` or ``both``. ``held`` is the
    size in bytes of the rows that ``shuffled`` holds.
    """

    device = torch.device("cpu")

    def __init__(self, states: States, exit: int, which: str, chosen: np.ndarray, held: int = HELD):
        self.states, self.exit, self.which, self.chosen = states, exit, which, chosen
        self.width = (which != "statistics") * states.artifact.meta["width"]
        self.width += (which != "state") * len(STATISTICS)
        self.held_rows = rows_held(self.width, held)
        self._statistics = None if which == "state" else torch.from_numpy(states.statistics(exit)[chosen])

    def __len__(self) -> int:
        return int(self.chosen.sum())

    def parts(self) -> Iterator[Tensor]:
        first = start = 0
        for hidden in self.states.hidden_shards(self.exit):
            kept = hidden[torch.from_numpy(self.chosen[start : start + len(hidden)])]
            start += len(hidden)
            for rows in kept.split(self.held_rows // PARTS) if len(kept) else ():
                yield self._seen(rows, slice(first, first + len(rows)))
                first += len(rows)

    def moments(self) -> tuple[Tensor, Tensor]:
        # those of parts are joined one by one (Chan, Golub and LeVeque 1983)
        count, mean, squares = 0, torch.zeros(self.width).double(), torch.zeros(self.width).double()
        for rows in self.parts():
            apart, together = rows.mean(0).double() - mean, count + len(rows)
            squares += rows.double().var(0, correction=0) * len(rows)
            squares += apart.square() * (count * len(rows) / together)
            mean, count = mean + apart * (len(rows) / together), together
        return mean.float(), (squares / (count - 1)).sqrt().float()

    def shuffled(self, batch_size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        runs = self._runs()
        for numbers in torch.randperm(len(runs), generator=generator).split(self.held_rows // RUN):
            drawn = runs[np.sort(numbers.numpy())]
            places = torch.cat([torch.arange(first, first + length) for first, _, length in drawn.tolist()])
            spans = [(start, start + length) for _, start, length in drawn.tolist()]
            rows = self._seen(self.states.hidden_spans(self.exit, spans), places)
            for order in torch.randperm(len(rows), generator=generator).split(batch_size):
                yield places[order], rows[order]
            del rows  # before as many are read again

    def _runs(self) -> np.ndarray:
        """Runs (R, 3) of chosen tokens: the place of the first among the chosen and in the table, and how
        many there are."""
        at = np.flatnonzero(self.chosen)
        begins = np.flatnonzero(np.diff(at, prepend=-2) != 1)
        lengths = np.diff(begins, append=len(at))
        pieces = -(-lengths // RUN)
        within = np.arange(pieces.sum()) - np.repeat(pieces.cumsum() - pieces, pieces)
        first = np.repeat(begins, pieces) + RUN * within
        length = np.minimum(RUN, np.repeat(begins + lengths, pieces) - first)
        return np.stack((first, at[first], length), axis=1)

    def _seen(self, hidden: Tensor, places: slice | Tensor) -> Tensor:
        """What the classifier sees of tokens with hidden states (N, D), at ``places`` of the chosen ones."""
        statistics = None if self._statistics is None else self._statistics[places]
        return classifier_inputs(
            self.which, None if self.which == "statistics" else hidden.float(), statistics
        )


def state_inputs(states: States, exit: int, which: str, chosen: np.ndarray, held: int = HELD) -> Inputs:
    """What a classifier that sees ``which`` is given of the tokens in the mask ``chosen`` (num_tokens,).

    It is held in memory where it takes at most ``held`` bytes, and read as it is needed where it takes more.
    """
    stored = StoredInputs(states, exit, which, chosen, held)
    return HeldInputs(torch.cat(list(stored.parts()))) if len(stored) <= stored.held_rows else stored
