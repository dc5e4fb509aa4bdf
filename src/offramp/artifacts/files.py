"""Small files written whole or not at all, and the digest of any file."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from offramp.errors import UserError, out_of_memory, writing


def hash_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path: Path, values: Any) -> None:
    """Write JSON atomically, with sorted keys; non-finite numbers are refused."""
    write_text(path, json.dumps(values, indent=2, sort_keys=True, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a small text file atomically."""
    path = Path(path)
    with written_whole(path, len(text.encode())) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def written_whole(path: Path, needed: int | None = None) -> Iterator[Path]:
    """Write a file or fill a folder under the yielded name; then it replaces ``path`` in one rename.

    On an exception nothing at ``path`` changes and what was written goes. UserError, as ``errors.writing``
    has it, for a full disk and its like; ``needed`` is the size in bytes where it is known.
    """
    partial = path.with_name(f".{path.name}.partial")
    try:
        with writing(partial, needed):
            clear(partial)
            partial.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            if partial.is_dir():
                clear(path)
            os.replace(partial, path)
    finally:
        with suppress(OSError):
            clear(partial)


@contextmanager
def readable(file: Path) -> Iterator[Path]:
    """Read a file of an artifact within the context; whatever a reader finds wrong with it is a UserError.

    A manifest cannot say this: it was written, or edited, to fit the file.
    """
    try:
        yield file
    except UserError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        reason = (str(error).splitlines() or [""])[0][:200]
        raise UserError(
            f"{file} does not hold what it should ({type(error).__name__}: {reason}); delete {file.parent} "
            "and run `dvc repro` to make it again"
        ) from error


def clear(path: Path) -> None:
    """Remove what is at ``path``, if anything is: a folder with all in it; of a link the link alone."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as CSV, atomically; None becomes an empty cell."""
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, out.getvalue())
