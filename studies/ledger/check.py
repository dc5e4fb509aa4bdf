"""Whether committed files are what would be written now."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from offramp.errors import UserError


def check_same(written: Path, committed: Path, names: Iterable[Path | str], remedy: str) -> None:
    """Compare files of two folders byte by byte. Raises UserError that names every one that differs."""
    problems = []
    for name in sorted(map(str, names)):
        new, old = written / name, committed / name
        if not new.exists():
            problems.append(f"{old}: would not be written")
        elif not old.exists():
            problems.append(f"{old}: is missing")
        elif new.read_bytes() != old.read_bytes():
            problems.append(f"{old}: differs from what would be written")
    if problems:
        raise UserError("\n".join([*problems, remedy]))
