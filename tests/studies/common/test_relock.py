"""A lock is renewed without a whole rerun only where two random seeds give the committed values again."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fixtures.toy_study import copy_with_toy, python

pytestmark = pytest.mark.slow


@pytest.fixture
def project(tmp_path) -> Path:
    """The copy after DVC has run the toy study."""
    root = copy_with_toy(tmp_path)
    python(root, "dvc", "repro", "sotu@toy", folder="studies")
    return root


def rewrite(root: Path, before: str, after: str) -> None:
    file = root / "studies/toy/study.py"
    text = file.read_text()
    assert before in text
    file.write_text(text.replace(before, after))


def changed(root: Path) -> bool:
    """Whether DVC would run the toy study again."""
    python(root, "studies", "code")
    return "sotu@toy" in python(root, "dvc", "status", "sotu@toy", folder="studies")


def test_a_reworded_line_is_renewed(project):
    assert not changed(project)
    rewrite(project, "A study of nothing.", "A study of hardly anything.")
    assert changed(project)
    assert "sotu@toy: renewed" in python(project, "studies", "relock", "toy")
    assert not changed(project)


def test_another_result_is_refused_by_key_and_the_lock_stays(project):
    lock = (project / "studies/dvc.lock").read_text()
    rewrite(project, "seed / 10", "seed / 9")
    said = python(project, "studies", "relock", "toy", fails=True)
    assert "sotu@toy: not renewed, 1 values differ" in said and "random seed 1 documents: committed" in said
    assert (project / "studies/dvc.lock").read_text() == lock and changed(project)


def test_another_published_result_is_refused_too(project):
    rewrite(project, "float(len(job.text.train))", "float(len(job.text.train)) + 1")
    assert "published documents: committed" in python(project, "studies", "relock", "toy", fails=True)


def test_results_without_values_by_seed_cannot_be_renewed(project):
    (project / "studies/metrics/toy.sotu.csv").unlink()
    said = python(project, "studies", "relock", "toy", fails=True)
    assert "toy.sotu.csv has no values of random seeds [0, 1]; run `dvc repro` in studies/" in said
