"""What git knows about a working copy; every answer is None where there is no repository or no commit."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

REMOTE = re.compile(
    r"(?:(?:https?|ssh|git)://(?:[^@/\s]*@)?(?P<host>[^:/\s]+)(?::\d+)?/|[\w.-]+@(?P<scp>[^:/\s]+):)"
    r"(?P<path>\S+?)/?"
)
"""Addresses from which git clones over a network: ``https://host/path`` and ``git@host:path``."""
HOSTS = {"github": "tree", "gitlab": "-/tree", "bitbucket": "src"}
"""What stands before a commit in addresses of pages, by a word of the host's name."""


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


def branch(root: Path) -> str | None:
    """The branch that is checked out, if any is."""
    return _git(root, "symbolic-ref", "--quiet", "--short", "HEAD")


def folder_in_repository(root: Path) -> str:
    """Where ``root`` is in its repository: ``""`` at the top, else a path that ends in a slash."""
    return _git(root, "rev-parse", "--show-prefix") or ""


def web_address(root: Path) -> str | None:
    """The page of the repository that this one was cloned from, without user, password and ``.git``.

    None for a folder, which has no page.
    """
    url = _git(root, "remote", "get-url", "origin") or ""
    there = REMOTE.fullmatch(url)
    if there is None:
        return None
    return f"https://{there['host'] or there['scp']}/{there['path'].removesuffix('.git')}"


def commit_page(root: Path) -> str | None:
    """The page of the newest commit, where the repository's host is of a kind whose pages are known."""
    repository, head = web_address(root), last_commit(root)
    if repository is None or head is None:
        return None
    host = repository.split("/")[2]
    return next((f"{repository}/{way}/{head.hash}" for name, way in HOSTS.items() if name in host), None)


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    except FileNotFoundError:  # git itself is not installed
        return None
    return done.stdout.rstrip("\n") if done.returncode == 0 else None
