"""README.md and the pages of docs/, taken apart: commands, links, headings."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import NamedTuple

from tests.conftest import REPOSITORY

PAGES = sorted(
    path.relative_to(REPOSITORY).as_posix()
    for path in (REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md"))
)
GUIDES = [page for page in PAGES if not page.startswith("docs/studies/")]
"""Those that a person wrote; pages of studies come from results alone."""

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_INDENTED = re.compile(r"(?<=\n\n)(?: {4}.*\n)+")
_INLINE = re.compile(r"`([^`\n]+)`")
PROGRAMS = ("offramp", "dvc", "make", "python", "mlflow", "git", "pip", "source", "export", "exec")
"""What a line of a block begins with if it is a command."""


class Command(NamedTuple):
    page: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page}: {shlex.join(self.words)}"


def blocks(page: str, language: str = "") -> list[str]:
    """The blocks of code of one language, "" for those that name none and indented ones."""
    text = (REPOSITORY / page).read_text(encoding="utf-8")
    fenced = [code for named, code in _FENCE.findall(text) if named == language]
    return fenced + (_INDENTED.findall(_FENCE.sub("", text)) if not language else [])


def commands(page: str) -> list[Command]:
    """All commands of a page's blocks, one for each part of a line that ``&&`` or ``;`` divides."""
    typed = []
    for block in blocks(page):
        for line in block.replace("\\\n", " ").splitlines():
            line = re.sub(r"^for \w+ in .*?; do (.*); done.*$", r"\1", line.strip())
            for part in re.split(r"\s(?:&&|;|\|)\s", _without_comment(line)):
                first = part.split()[:1]
                if first and first[0].removeprefix(".venv/bin/").removesuffix("3") in PROGRAMS:
                    typed.append(Command(page, tuple(shlex.split(part))))
    return typed


def inline(page: str) -> list[Command]:
    """What stands in running text as code and begins like a command."""
    text = _FENCE.sub("", (REPOSITORY / page).read_text(encoding="utf-8"))
    begins = re.compile(r"(?:offramp|make|dvc|python -m) [a-z]")
    codes = [code for code in _INLINE.findall(text) if begins.match(code)]
    return [Command(page, tuple(shlex.split(code))) for code in codes]


def _without_comment(line: str) -> str:
    return re.split(r"\s#\s", line)[0]


def links(page: str) -> list[str]:
    """Targets of the links and pictures of a page."""
    text = _INLINE.sub("", _FENCE.sub("", (REPOSITORY / page).read_text(encoding="utf-8")))
    return re.findall(r"\]\(([^)\s]+)\)", text)


def anchors(file: Path) -> set[str]:
    """What links to a page may have after #, as GitHub makes them of headings."""
    text = _FENCE.sub("", file.read_text(encoding="utf-8"))
    return {_slug(heading) for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}


def _slug(heading: str) -> str:
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", plain.lower()).strip().replace(" ", "-")
