"""What git knows about a working copy; every answer is None where there is no repository or no commit."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Commit:
    """One commit: full hash, ISO date of the commit, first line of its message."""

    hash: str
    date: str
    subject: str


def last_commit(root: Path, path: str = ".") -> Commit | None:
    """The newest commit that changed ``path``; the newest of all for ``"."``."""
    scope = [] if path == "." else ["--", path]
    answer = _git(root, "log", "-1", "--format=%H%n%cI%n%s", *scope)
    return Commit(*answer.split("\n", 2)) if answer else None


def changed_files(root: Path, *paths: str) -> list[str]:
    """Files under ``paths`` (all, if none is given) that differ from HEAD or are not in git at all."""
    answer = _git(root, "status", "--porcelain", "--no-renames", "--", *(paths or ["."]))
    return [line[3:] for line in (answer or "").splitlines()]


def file_at(root: Path, revision: str, path: str) -> str | None:
    """What a commit holds under ``path``."""
    return _git(root, "show", f"{revision}:./{path}")


def remote(root: Path) -> str | None:
    """The address of the repository that this one was cloned from, without user and password."""
    url = _git(root, "remote", "get-url", "origin")
    return None if url is None else re.sub(r"(?<=://)[^/\s]*@", "", url)


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    except FileNotFoundError:  # git itself is not installed
        return None
    return done.stdout.rstrip("\n") if done.returncode == 0 else None
