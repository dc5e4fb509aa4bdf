"""Who is told how a long computation gets on, while it runs.

A computation tells its watch and never asks it anything, so that nobody who looks can change a result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat


class Watch:
    """Somebody who is told; this one tells nobody.

    What overrides a method must return at once, raise nothing, draw no random number and change no value that
    it is given.
    """

    def curve(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Take in points of a learning curve, as its file will have them."""

    def step(self, part: str, number: int, tokens: int, **values: SupportsFloat) -> None:
        """Take in that step ``number``, from 1, of a part of the computation was made on so many tokens.

        ``values`` are of this step. Tensors among them are only read when somebody wants to see them: that
        waits for the device.
        """


class Part(Watch):
    """Tells another watch of a part of its computation, under the part's name and with columns of its own."""

    def __init__(self, watch: Watch, part: str, **columns: Any):
        self.watch, self.part, self.columns = watch, part, columns

    def curve(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.watch.curve([{**self.columns, **row} for row in rows])

    def step(self, part: str, number: int, tokens: int, **values: SupportsFloat) -> None:
        self.watch.step(self.part, number, tokens, **values)


NOBODY = Watch()
