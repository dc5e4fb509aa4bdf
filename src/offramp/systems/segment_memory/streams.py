"""Windows in reading order, for models that carry something from one window to the next.

Shapes: N steps, R rows, T positions. Row r reads its own contiguous part of the text; step i + 1 goes on
where step i ended.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from offramp.errors import UserError


@dataclass(frozen=True)
class Streams:
    """Windows by step and row."""

    tokens: Tensor
    """(N, R, T)"""
    targets: Tensor
    """(N, R, T), the next token of each."""
    begins: Tensor
    """(N, R): nothing of this window's document comes before it in its row, so that what was carried must be
    dropped."""
    in_order: bool = True

    def shuffled(self, generator: torch.Generator) -> Streams:
        """The same windows at other places, one permutation over all."""
        steps, rows, _ = self.tokens.shape
        order = torch.randperm(steps * rows, generator=generator)
        tokens, targets, begins = (
            part.flatten(0, 1)[order].unflatten(0, (steps, rows))
            for part in (self.tokens, self.targets, self.begins)
        )
        return Streams(tokens, targets, begins, in_order=False)

    def require_order(self) -> None:
        """Raises UserError for shuffled windows: what is carried over them is of other places of the text."""
        if not self.in_order:
            raise UserError(
                "memory = 'carry' needs the windows of a document in order, these are shuffled; "
                "read Streams as they are cut, or use memory = 'reset'"
            )


def cut_streams(tokens: Tensor, documents: Tensor, window: int, rows: int) -> Streams:
    """Streams of a text of tokens (C,), each of a document (C,); what does not fill a step of all rows is
    left out.

    Raises UserError for a text too short for one step.
    """
    steps = (len(tokens) - 1) // window // rows
    if steps == 0:
        raise UserError(
            f"{len(tokens)} tokens do not fill {rows} rows of {window}; "
            "give a longer text, fewer rows or a shorter window"
        )
    length = steps * rows * window
    inputs, targets = (
        part.unflatten(0, (rows, steps, window)).transpose(0, 1)
        for part in (tokens[:length], tokens[1 : length + 1])
    )
    first = documents[:length:window].unflatten(0, (rows, steps)).T
    begins = torch.ones_like(first, dtype=torch.bool)
    begins[1:] = first[1:] != first[:-1]
    return Streams(inputs, targets, begins)
