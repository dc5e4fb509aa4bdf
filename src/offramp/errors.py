"""Errors that a user can act on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")
"""How torch's allocators put it, of GPUs and of the CPU, and the system, where a file cannot be mapped."""


class UserError(Exception):
    """Wrong input: the message names the key or file, the value and the remedy. Shown without a traceback."""


def out_of_memory(error: BaseException) -> bool:
    """Whether it says that an allocation failed: nothing is wrong with what was to be held."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in OUT_OF_MEMORY)


def require_heads(width: int, heads: int) -> None:
    """Raises UserError unless the heads of a layer share its width evenly."""
    if heads < 1 or width % heads:
        raise UserError(f"heads = {heads} do not divide width = {width}; use a number of heads that does")


@contextmanager
def memory_for(what: str, lower: str) -> Iterator[None]:
    """UserError in place of an allocation that failed inside, naming ``what`` was done and what to ``lower``.

    A process that the system kills for its memory cannot say anything.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not out_of_memory(error):
            raise
        said = (str(error).splitlines() or ["no memory"])[0]
        raise UserError(f"{what} ran out of memory ({said}); lower {lower}") from error
