"""Claims and questions are read by a strict schema, whose errors name file, id, field and remedy."""

from __future__ import annotations

import pytest

from offramp.errors import UserError
from studies.ledger.claims import read_claims, read_questions, read_statements
from studies.ledger.ledger import main, validate
from studies.ledger.verdict import Region
from tests.fixtures.made_up_claims import claim, home_with, question, write_yaml


def only_claim(folder, **changes):
    return read_claims(home_with(folder, {"labels": [claim(**changes)]}))[0]


def only_question(folder, **changes):
    return read_questions(home_with(folder, questions={"labels": [question(**changes)]}))[0]


def test_a_claim_has_what_its_file_and_its_study_say(tmp_path):
    one = only_claim(tmp_path, rerun_scale="3 of 10 epochs", smaller=True, other_quantity="FLOPs")
    assert (one.id, one.study, one.report, one.section) == ("x", "labels", "exit-labels", "Results")
    assert (one.key, one.corrected_key, one.figure, one.rule) == ("a", "a", 0.5, Region(0.4, 0.6))
    assert (one.smaller, one.other_quantity, one.level_of, one.construction) == (True, "FLOPs", None, False)


@pytest.mark.parametrize(
    ("changes", "kind", "rule"),
    [
        ({}, "conclusion", Region(0.4, 0.6)),
        ({"region": [0, None]}, "conclusion", Region(0.0, None)),
        ({"region": None, "band": "share"}, "figure", Region(0.45, 0.55)),
        ({"region": None, "band": "level"}, "figure", Region(0.375, 0.625)),
        ({"construction": True}, "construction", Region(0.4, 0.6)),
    ],
)
def test_a_region_makes_a_conclusion_and_a_band_a_figure(tmp_path, changes, kind, rule):
    one = only_claim(tmp_path, **changes)
    assert (one.kind, one.rule) == (kind, rule)


@pytest.mark.parametrize("digits", ["0.50", "0.5", ".5", "5e-1"])
def test_published_figures_keep_their_digits(tmp_path, digits):
    home = home_with(tmp_path, {"labels": [claim(published="PRINTED")]})
    file = home / "labels/claims.yaml"
    file.write_text(file.read_text().replace("PRINTED", digits))
    assert (read_claims(home)[0].published, read_claims(home)[0].figure) == (digits, 0.5)


def test_a_row_overrides_its_group_and_reasons_are_merged(tmp_path):
    home = home_with(tmp_path)
    shared = {**claim(), "reason": {"holds": "of the group", "fails": "of the group"}}
    rows = [{"id": "y", "published": 0.45}, {"id": "z", "reason": {"fails": "of the row"}}]
    write_yaml(home / "labels/claims.yaml", [{**shared, "rows": rows}])
    first, second = read_claims(home)
    assert (first.id, first.published, second.published) == ("y", "0.45", "0.5")
    assert first.reason["fails"] == "of the group"
    assert second.reason == {"holds": "of the group", "fails": "of the row"}


def test_claims_stand_report_by_report(tmp_path):
    home = home_with(tmp_path, {"growth": [claim(id="g")], "labels": [claim(id="l")]})
    assert [one.id for one in read_claims(home)] == ["l", "g"]


CLAIM_ERRORS = [
    ({"region": [0.6, 0.7]}, "region: excludes the published figure 0.5; mend"),
    ({"published": 0.7}, "region: excludes the published figure 0.7; mend"),
    ({"region": [0.6, 0.4]}, r"region: .*low 0\.6 is above high 0\.4; swap"),
    ({"region": [None, None]}, "region: .*at least one bound"),
    ({"region": 0.5}, r"region: is not \[low, high\]"),
    ({"region": ["low", 1]}, "region: has a bound that is no number"),
    ({"region": None}, "region, band: give one of them"),
    ({"band": "share"}, "region, band: both are given; keep one"),
    ({"region": None, "band": "wide"}, "band: 'wide': input should be 'level' or 'share'"),
    ({"region": None, "band": "share", "published": None}, "published: is missing; a band"),
    ({"published": "36.4%"}, "published: '36.4%' is no number; write a share as a fraction"),
    ({"published": "1,095"}, "published: '1,095' is no number"),
    ({"section": "11.4"}, r"section: '11\.4' is a number; write the report's heading"),
    ({"section": None}, "section: is missing; add it"),
    ({"statement": ""}, "statement: ''"),
    ({"written": None}, "written: is missing; add it"),
    ({"written": "later"}, "written: 'later': input should be 'before', 'after_pilot' or 'after_results'"),
    ({"rerun_scale": None}, "rerun_scale: is missing; add it"),
    ({"smaller": True}, "smaller: contradicts rerun_scale 'as published'"),
    ({"smaller": "yes"}, "smaller: 'yes': input should be a valid boolean"),
    ({"corpora": ["nowhere"]}, r"corpora\.0: 'nowhere': input should be 'pangram', 'sotu' or 'wikitext'"),
    ({"corpora": []}, "corpora: .*at least 1 item"),
    ({"keyy": "a"}, "keyy: is no field of a claim; choose from id, alias, statement, key,"),
    ({"key": None}, "key: is missing; add it"),
    ({"key": "a times b"}, "key: 'a times b' is not"),
    ({"key": "nothing:a"}, "key: nothing is no study; choose from growth, labels, signals"),
    ({"corrected_key": "a / b"}, "corrected_key: is a ratio, which has no interval"),
    ({"reason": {"true": "so"}}, "reason.true: is of no outcome; choose from holds, holds only corrected"),
    ({"reason": {"holds": "It is so."}}, "reason.holds: ends with a full stop"),
    ({"reason": {"holds": "it is {value}"}}, r"reason.holds: names value; choose from \{published\}, "),
    ({"reason": {"holds": "it is {rerun"}}, "reason.holds: "),
    ({"id": "Two Words"}, "id: 'Two Words'"),
    ({"study": "growth"}, "study: is no field of a claim"),
]


@pytest.mark.parametrize(("changes", "message"), CLAIM_ERRORS)
def test_a_claim_that_cannot_be_judged_is_refused(tmp_path, changes, message):
    home = home_with(tmp_path, {"labels": [claim(**changes)]})
    name = changes.get("id", "x")
    with pytest.raises(UserError, match=rf"(?m)^studies/labels/claims\.yaml: {name}: {message}"):
        read_claims(home)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"region": None}, "region: is missing; say for which values"),
        ({"published": 0.5}, "published: is no field of a question"),
        ({"section": "Results"}, "section: is no field of a question"),
        ({"smaller": True}, "smaller: is no field of a question"),
        ({"reason": {"holds": "so"}}, "reason.holds: is of no outcome; choose from yes, no, no answer yet"),
    ],
)
def test_a_question_that_cannot_be_answered_is_refused(tmp_path, changes, message):
    with pytest.raises(UserError, match=rf"(?m)^studies/labels/questions\.yaml: q: {message}"):
        only_question(tmp_path, **changes)


def test_questions_may_be_of_studies_of_no_report_and_claims_may_not(tmp_path):
    home = home_with(tmp_path, {"signals": [claim()]}, {"signals": [question()]})
    told = r"studies/signals/claims\.yaml: x: report: of the study is None; move the row to questions\.yaml"
    with pytest.raises(UserError, match=told):
        read_claims(home)
    (home / "signals/claims.yaml").unlink()
    assert read_questions(home)[0].report is None


def test_all_problems_of_all_files_are_told_at_once(tmp_path):
    rows = [claim(written=None, section="4"), claim(id="y"), claim(id="z", region=[0, 0.1])]
    home = home_with(tmp_path, {"labels": rows, "growth": [claim(id="w", smaller=1)]}, {"labels": [{}]})
    (home / "signals/claims.yaml").write_text("- rows: [")
    statements = read_statements(home)
    assert [one.id for one in statements.claims] == ["y"]
    text = "\n".join(statements.problems)
    for part in ("x: written", "x: section", "z: region", "growth/claims.yaml: w: smaller", "group 1: id"):
        assert part in text
    assert "signals/claims.yaml: is no YAML" in text
    with pytest.raises(UserError, match=rf"{len(statements.problems)} problems$"):
        validate(home)


def test_a_file_that_is_no_list_of_groups_is_refused(tmp_path):
    home = home_with(tmp_path)
    write_yaml(home / "labels/claims.yaml", [{"section": "Results"}])
    with pytest.raises(UserError, match=r"labels/claims\.yaml: group 1: rows: is no list of rows"):
        read_claims(home)


@pytest.mark.parametrize("field", ["id", "alias"])
def test_no_two_rows_have_one_name(tmp_path, field):
    rows = {"id": "x", "alias": "1"}
    home = home_with(
        tmp_path,
        {"labels": [claim(**rows)]},
        {"growth": [question(**{"id": "q", "alias": "2", field: rows[field]})]},
    )
    with pytest.raises(UserError, match=f"{rows[field]}: {field}: occurs 2 times; rename"):
        read_claims(home)


def test_a_description_that_cannot_be_read_hides_no_other_problem(tmp_path):
    home = home_with(tmp_path, {"labels": [claim(written="now")]})
    write_yaml(home / "growth/study.yaml", {"report": "nobody's"})
    with pytest.raises(UserError, match=r"(?s)growth/study\.yaml: report.*labels/claims\.yaml: x: written"):
        read_claims(home)


def test_validation_needs_no_results(tmp_path, capsys):
    home = home_with(tmp_path, {"labels": [claim()]}, {"growth": [question()]})
    main(["--validate"], home)
    assert capsys.readouterr().out == "1 claims and 1 questions can be read\n"
    assert not (home / "claims.csv").exists()
