"""Reports have names: their old numbers stand in no file but as aliases of claims."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

OLD_REPORT = re.compile(r"seeds?[ _-]?00\d", re.IGNORECASE)
"""A report under its old number, such as "seed" and 003."""
OLD_CLAIM = re.compile(r"(?<![\w.-])00[0-4]-[a-z]")
"""How the id of a claim began when reports had numbers."""
ALIASES = ("studies/claims.csv", "studies/questions.csv", "claims.yaml", "questions.yaml")
"""How the names of files end that give a claim's old id."""


def tracked_texts() -> Iterator[tuple[str, str]]:
    """Name and text of every file that git knows and that is UTF-8."""
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        path = REPOSITORY / name
        if path.is_file():
            try:
                yield name, path.read_text(encoding="utf-8")
            except UnicodeDecodeError:
                continue


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    return dict(tracked_texts())


def lines_with(pattern: re.Pattern, name: str, text: str) -> list[str]:
    return [
        f"{name}:{number}: {line.strip()[:120]}"
        for number, line in enumerate(text.splitlines(), 1)
        if pattern.search(line)
    ]


def test_no_file_calls_a_report_by_its_number(texts):
    assert len(texts) > 100
    lines = [line for name, text in texts.items() for line in lines_with(OLD_REPORT, name, text)]
    assert not lines, "\n".join(lines)


def test_old_ids_of_claims_are_aliases_alone(texts):
    lines = [
        line
        for name, text in texts.items()
        if not name.endswith(ALIASES)
        for line in lines_with(OLD_CLAIM, name, text)
    ]
    assert not lines, "\n".join(lines)


def test_no_file_is_called_by_a_number(texts):
    assert not [name for name in texts if OLD_REPORT.search(Path(name).name)]


@pytest.mark.parametrize("before", ["as in seed ", "naive_seed", "Seeds ", "test_SEED_"])
def test_a_number_is_noticed(before):
    assert lines_with(OLD_REPORT, "file", f"a line\n{before}003")
    assert not lines_with(OLD_REPORT, "file", f"{before}42")
