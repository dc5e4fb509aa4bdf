"""Both protocols go into one file, one of them can be run again alone, and values of every random seed are
kept."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from offramp.errors import UserError
from studies.common.results import over_seeds, read_results, read_seeds, write_results
from studies.common.study import Outcome, study_of
from studies.common.text import Document, StudyText

STUDY = study_of("exit_labels")
TEXT = StudyText("sotu", "made up", [Document("a", "one")], [])
PUBLISHED = Outcome([{"loss": 2.0, "gap": None}], {"arms.published": [{"arm": "a"}]})
CORRECTED = Outcome(
    [{"loss": 1.0, "gap": None}, {"loss": 3.0, "gap": 1.0}], {"arms.corrected": []}, ["It is so."]
)


def written(home: Path, text: StudyText = TEXT, **outcomes: Outcome) -> dict:
    return json.loads(write_results(home, STUDY, text, outcomes, [5, 7]).read_text())


def test_a_protocol_that_did_not_run_keeps_its_values(tmp_path):
    written(tmp_path, published=PUBLISHED)
    both = written(tmp_path, corrected=CORRECTED)
    assert both["published"]["values"] == PUBLISHED.rows[0]
    assert both["corrected"]["values"] == over_seeds(CORRECTED.rows)
    assert written(tmp_path, published=PUBLISHED) == both


def test_figures_and_sentences_belong_to_their_protocol(tmp_path):
    written(tmp_path, published=PUBLISHED, corrected=CORRECTED)
    written(tmp_path, published=Outcome(PUBLISHED.rows, {"other.published": []}))
    results = read_results(tmp_path, STUDY.name, "sotu")
    assert set(results.figures) == {"other.published", "arms.corrected"}
    assert results.sentences == ["It is so."]


def test_values_of_another_text_are_not_kept(tmp_path):
    written(tmp_path, published=PUBLISHED)
    other = replace(TEXT, train=[Document("a", "two")])
    assert "published" not in written(tmp_path, other, corrected=CORRECTED)
    assert "corrected" not in written(tmp_path, published=PUBLISHED)
    assert read_seeds(tmp_path, STUDY.name, "sotu") == {}


def test_values_of_every_random_seed_are_read_as_they_were_written(tmp_path):
    written(tmp_path, corrected=CORRECTED)
    assert read_seeds(tmp_path, STUDY.name, "sotu") == {5: {"loss": 1.0}, 7: {"loss": 3.0, "gap": 1.0}}


def test_a_value_that_one_random_seed_has_not_has_no_interval(tmp_path):
    results = written(tmp_path, corrected=CORRECTED)["corrected"]
    assert set(results["values"]) == {"loss"} and results["n"] == 2
    assert results["values"]["loss"]["value"] == 2.0
    # t of 97.5 % with one degree of freedom is 12.706, the standard error is 1
    assert results["values"]["loss"]["high"] == pytest.approx(2 + 12.706, abs=1e-3)


def test_one_random_seed_has_no_interval():
    with pytest.raises(UserError, match="at least 2"):
        over_seeds([{"loss": 1.0}])


def test_a_damaged_file_is_an_error_that_names_it_and_what_to_run(tmp_path):
    assert read_results(tmp_path, STUDY.name, "sotu") is None
    path = write_results(tmp_path, STUDY, TEXT, {"published": PUBLISHED}, [])
    path.write_text(path.read_text().replace('"n": 1', '"n": "many"'))
    with pytest.raises(UserError, match=r"published\.n.*python -m studies exit_labels"):
        read_results(tmp_path, STUDY.name, "sotu")
