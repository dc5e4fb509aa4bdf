"""Errors that a user can act on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")
"""What an error says when memory ran out: torch's allocators, and the system where no file can be mapped."""


class UserError(Exception):
    """Wrong input: the message names the key or file, the value and the remedy. Shown without a traceback."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that an allocation failed: nothing is wrong then with the data itself."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in OUT_OF_MEMORY)


@contextmanager
def memory_for(what: str, lower: str) -> Iterator[None]:
    """Turn an allocation that fails within the context into a UserError.

    Its message names ``what`` ran out of memory and the parameters to ``lower``. A process that the system
    kills for its memory cannot say anything.
    """
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as error:
        if not out_of_memory(error):
            raise
        reason = (str(error).splitlines() or ["no memory"])[0]
        raise UserError(f"{what} ran out of memory ({reason}); lower {lower}") from error
