"""A new study is one folder and one line of studies/dvc.yaml: everything else finds it."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from offramp.errors import UserError
from studies.common.study import HOME, studies, study_of
from tests.fixtures.toy_study import TOY, copy_with_toy, python

STAGES = YAML(typ="safe").load((HOME / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    return copy_with_toy(tmp_path_factory.mktemp("copy"))


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
