"""One process at a time: a lock that ends with its process, however that ends, and names it meanwhile."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from offramp.errors import UserError, writing

WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
"""What file systems say that know no locks."""


@contextmanager
def alone(file: Path, what: str) -> Iterator[None]:
    """Do ``what`` within the context, and refuse where another process does something under this ``file``.

    UserError then names that process. On a file system without locks nothing is refused.
    """
    with _held(file, what, wait=False):
        yield


@contextmanager
def in_turn(file: Path, what: str) -> Iterator[None]:
    """Do ``what`` within the context, after waiting for whoever does the same under this ``file``."""
    with _held(file, what, wait=True):
        yield


@contextmanager
def _held(file: Path, what: str, wait: bool) -> Iterator[None]:
    while True:
        with _opened(file) as lock:
            if not _taken(lock, fcntl.LOCK_EX | fcntl.LOCK_NB):
                _wait(lock, file, wait)
            if not _is(lock, file):  # whoever held it has removed it meanwhile
                continue
            with writing(file):
                lock.truncate(0)
                lock.write(f"{os.getpid()} {what}\n")
                lock.flush()
            try:
                yield
            finally:
                with suppress(OSError):
                    file.unlink()
            return


def _opened(file: Path) -> IO[str]:
    with writing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        return open(file, "a+", encoding="utf-8")


def _wait(lock: IO[str], file: Path, wait: bool) -> None:
    lock.seek(0)
    owner, _, doing = lock.read().strip().partition(" ")
    if not wait:
        raise UserError(
            f"{doing or 'a stage'} is still at work as process {owner or '?'} ({file}): it may have outlived "
            f"the dvc that started it; wait until it has ended, or end it with `kill {owner or 'NUMBER'}`, "
            "and run the same command again"
        )
    logging.warning("waiting for process %s, which does the same: %s", owner or "?", doing)
    _taken(lock, fcntl.LOCK_EX)


def _is(lock: IO[str], file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(lock.fileno()), os.stat(file))
    except FileNotFoundError:
        return False


def _taken(held: IO[str], how: int) -> bool:
    try:
        fcntl.flock(held, how)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in WITHOUT_LOCKS:
            raise
    return True
