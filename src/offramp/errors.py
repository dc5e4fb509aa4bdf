"""Errors that a user can act on: what is said of them, in one line and without a traceback."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "not enough memory",
    "bad allocation",
    "bad_alloc",
)
"""What an error says when memory ran out: torch's allocators, and the system where no file can be mapped."""

REMEDIES = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there, or have the quota raised",
    errno.EFBIG: "raise the limit on the size of a file (`ulimit -f`)",
    errno.EROFS: "make it writable, or work in another folder",
    errno.EACCES: "give yourself the right to it",
    errno.EPERM: "give yourself the right to it",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EMFILE: "raise the limit on open files (`ulimit -n`)",
    errno.ENOENT: "bring it back, or run `dvc repro` where a stage makes it",
    errno.ENOTDIR: "move away the file that stands where a folder belongs",
    errno.EISDIR: "move away the folder that stands where a file belongs",
    errno.ELOOP: "correct the symbolic link",
    errno.EIO: "the disk is failing: save what is on it",
}
"""What to do about an error of the system, by its number."""

FULL = (errno.ENOSPC, errno.EDQUOT)

_NUMBER = re.compile(r"\(os error (\d+)\)|\[errno (\d+)\]", re.IGNORECASE)
"""The system's number in what libraries in Rust (safetensors, tokenizers) and Arrow say."""
_TORCH_FILE = re.compile(r"inline_container|PytorchStream|iostream")
"""How torch's zip writer speaks; the system's error is what it met before."""


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


def file_error(error: BaseException | None) -> OSError | None:
    """The system's error that is behind a file that could not be read or written, or None.

    It is ``error`` itself, what a library's own error says in its words, or what torch's writer met before it
    complained. Errors of the network are none.
    """
    while error is not None:
        if isinstance(error, ConnectionError | TimeoutError):
            return None
        if isinstance(error, OSError) and error.errno:
            return error
        if number := _NUMBER.search(str(error)):
            code = int(number[1] or number[2])
            return OSError(code, os.strerror(code))
        if not _TORCH_FILE.search(str(error)):
            return None
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def writing(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turn a failure to write ``path`` within the context into a UserError.

    Of a folder the message names the file that was written last. It says what is free on a full disk, and how
    many bytes the file takes where that is known beforehand (``needed``).
    """
    try:
        yield
    except Exception as error:
        failure = file_error(error)
        if failure is None or isinstance(error, UserError):
            raise
        named = isinstance(failure.filename, str | bytes)
        raise UserError(explain(failure, None if named else _newest(path), needed)) from error


def explain(failure: OSError, path: Path | None = None, needed: int | None = None) -> str:
    """One line on a file that could not be read or written: which, why, what is free, and the remedy."""
    if path is None and isinstance(failure.filename, str | bytes):
        path = Path(os.fsdecode(failure.filename))
    code = failure.errno or 0
    parts = [f"{path or 'a file'} cannot be read or written: {os.strerror(code)}"]
    if code in FULL:
        folder = _present(path or Path())
        takes = f"it takes {_size(needed)}, and " if needed else ""
        with_free = f"{takes}{_size(shutil.disk_usage(folder).free)} are free in {folder.absolute()}"
        parts.append(with_free)
    elif needed:
        parts.append(f"it takes {_size(needed)}")
    parts.append(f"{REMEDIES.get(code, 'look at it')} and run the same command again")
    return "; ".join(parts)


def _newest(path: Path) -> Path:
    """The file below a folder that was written last, or the path itself where it is none."""
    try:
        files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else []
        return max(files, key=lambda file: file.stat().st_mtime_ns, default=path)
    except OSError:
        return path


def _present(path: Path) -> Path:
    """The nearest folder around a path that is there."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count < 1e9 else f"{count / 1e9:.1f} GB"
