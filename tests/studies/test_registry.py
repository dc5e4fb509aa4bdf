"""A new study is one folder and one line of studies/dvc.yaml: everything else finds it."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from offramp.errors import UserError
from studies.common.study import HOME, studies, study_of

STAGES = YAML(typ="safe").load((HOME / "dvc.yaml").read_text(encoding="utf-8"))["stages"]

TOY = {
    "__init__.py": "",
    "study.yaml": """\
report: exit-labels
section: A section
asks: How many documents are there?
texts: [sotu]
seeds: [0, 1, 2]
settings: {more: 1}
flaws: [it counts nothing else]
tiny: {more: 2}
""",
    "claims.yaml": """\
- section: A section
  corpora: [sotu]
  rows:
    - {id: toy-documents, alias: "", published: 10, region: [1, null], key: documents, statement: There are documents}
""",
    "study.py": '''\
"""A study of nothing."""

from studies.common.study import Job, Outcome

ARMS = ("documents",)


def published(job: Job) -> Outcome:
    return Outcome([{"documents": float(len(job.text.train))}])


def corrected(job: Job) -> Outcome:
    return Outcome([{"documents": len(job.text.train) + job.settings["more"] + seed / 10} for seed in job.seeds])
''',
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The repository's studies and library, without results, and a toy study among them."""
    root = tmp_path_factory.mktemp("copy")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "metrics", "build", "tmp", "cache")
    for folder in ("src", "studies"):
        shutil.copytree(HOME.parent / folder, root / folder, ignore=ignored)
    shutil.copy(HOME.parent / "params.yaml", root)
    (root / "studies/toy").mkdir()
    for name, text in TOY.items():
        (root / "studies/toy" / name).write_text(text)
    stages = root / "studies/dvc.yaml"
    stages.write_text(stages.read_text().replace("      - reversal\n", "      - reversal\n      - toy\n", 1))
    return root


def python(root: Path, *words: str, folder: str = ".") -> str:
    environment = {**os.environ, "DVC_NO_ANALYTICS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=root / folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def run(copy) -> Path:
    """The copy after the toy study, the ledger and the findings."""
    for words in (["toy", "--corpus", "sotu"], ["code"], ["ledger"], ["findings"]):
        python(copy, "studies", *words)
    return copy


@pytest.mark.slow
def test_a_toy_study_is_listed_with_its_question(copy):
    assert "toy                          How many documents are there?" in python(copy, "studies")


@pytest.mark.slow
def test_a_toy_study_prints_what_tiny_settings_give(copy):
    printed = python(copy, "studies", "toy", "--corpus", "sotu", "--tiny", "--seed", "0")
    assert "corrected  documents" in printed
    assert not (copy / "studies/metrics").exists()


@pytest.mark.slow
def test_a_toy_study_gets_a_verdict(run):
    with (run / "studies/claims.csv").open(newline="") as lines:
        rows = {row["id"]: row for row in csv.DictReader(lines)}
    assert rows["toy-documents"]["verdict"] == "holds" and rows["toy-documents"]["report"] == "exit-labels"


@pytest.mark.slow
def test_a_toy_study_stands_in_the_findings(run):
    page = (run / "docs/studies/exit-labels.md").read_text()
    assert "How many documents are there? (`toy`)" in page and "`toy-documents`" in page
    assert "it counts nothing else" in page
    assert "**How many documents are there?**" in (run / "docs/studies/index.md").read_text()


@pytest.mark.slow
def test_a_toy_study_is_a_stage_that_depends_on_its_code(run):
    assert "studies/toy/study.py" in (run / "studies/build/code/toy.json").read_text()
    python(run, "dvc", "config", "core.no_scm", "true", folder="studies")
    assert "sotu@toy" in python(run, "dvc", "stage", "list", "--name-only", folder="studies").split()


def test_every_study_has_a_line_for_each_of_its_texts():
    """WikiText-2 is not among DVC's stages: it is not on every machine."""
    known = studies()
    assert set(STAGES["sotu"]["foreach"]) == {
        name for name, study in known.items() if "sotu" in study.about.texts
    }
    pangram = STAGES["pangram"]["foreach"] + STAGES["pangram_as_published"]["foreach"]
    assert set(pangram) == {name for name, study in known.items() if "pangram" in study.about.texts}


def test_stages_of_studies_depend_on_one_file_of_code():
    for group in ("sotu", "pangram", "pangram_as_published"):
        assert STAGES[group]["do"]["deps"] == ["build/code/${item}.json"]
    assert STAGES["code"]["always_changed"]


def test_a_study_that_does_not_exist_is_named_with_those_that_do():
    with pytest.raises(UserError, match=r"study = 'nothing' does not exist; choose from adding_a_layer, "):
        study_of("nothing")


def test_a_description_with_a_wrong_field_is_refused_by_file_and_field(tmp_path):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy/study.yaml").write_text(TOY["study.yaml"].replace("seeds: [0, 1, 2]", "seeds: many"))
    with pytest.raises(UserError, match=r"toy/study\.yaml: seeds"):
        _ = study_of("toy", tmp_path).about
