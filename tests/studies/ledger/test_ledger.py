"""The ledger: every claim gets a verdict and every question an answer, from results as they are on disk."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_rel

from offramp.errors import UserError
from studies.common.results import number, seeds_path
from studies.ledger.ledger import COLUMNS, QUESTION_COLUMNS, check_ledger, exact, main, write_ledger
from studies.ledger.verdict import VERDICTS
from tests.fixtures.made_up_claims import around, claim, csv_rows, home_with, ledger, question, results

NEAR, FAR = around(0.5), around(0.9)
"""Figures inside and apart from the region of ``claim()``."""


def judged(folder, row, rerun=0.5, corrected=NEAR, **by_corpus):
    """The ledger's row of one claim; ``by_corpus``: (rerun, corrected) of further texts."""
    home = home_with(folder, {"labels": [row]})
    results(home, "labels", "sotu", {"a": rerun}, corrected)
    for corpus, (published, by_seed) in by_corpus.items():
        results(home, "labels", corpus, {"a": published}, by_seed)
    return ledger(home)[0][row["id"]]


SMALLER = {"smaller": True, "rerun_scale": "3 of 10 epochs"}
VERDICT_CASES = [
    ({}, 0.5, NEAR, "holds", "The rerun (0.5) and the corrected interval are within"),
    ({}, 0.8, NEAR, "holds only corrected", "the rerun (0.8) is not"),
    ({}, 0.5, FAR, "artefact", "The published protocol gives 0.5, within the claim's region (0.4 to 0.6)"),
    ({}, 0.2, FAR, "fails", "Neither the rerun (0.2) nor the corrected interval"),
    (SMALLER, 0.2, FAR, "not reproduced at this scale", "nothing is judged"),
    (SMALLER, 0.2, around(0.6), "not reproduced at this scale", "nothing is judged"),
    ({}, 0.5, around(0.6), "inconclusive", "reaches across the edge of the region (0.4 to 0.6)"),
    ({}, 0.5, NEAR[:2], "inconclusive", "Random seeds are too few to decide"),
    ({}, 0.61, NEAR, "inconclusive", "The rerun (0.61) is within 5 % of an edge of the region"),
    ({"other_quantity": "FLOPs"}, 0.5, NEAR, "inconclusive", "is another quantity: FLOPs"),
    ({"other_quantity": "FLOPs"}, 0.2, FAR, "fails", "Neither the rerun"),
    ({"level_of": "text and vocabulary"}, 0.5, NEAR, "not comparable", "another text and vocabulary"),
    ({"level_of": "machine"}, 0.2, FAR, "not comparable", "another machine"),
]


@pytest.mark.parametrize(("changes", "rerun", "corrected", "verdict", "reason"), VERDICT_CASES)
def test_every_verdict_by_a_case_of_its_own(tmp_path, changes, rerun, corrected, verdict, reason):
    row = judged(tmp_path, claim(**changes), rerun, corrected)
    assert row["verdict"] == verdict
    assert reason in row["reason"] and row["reason"].endswith("(State of the Union).")


def test_the_cases_have_every_verdict():
    assert {case[3] for case in VERDICT_CASES} == set(VERDICTS)


@pytest.mark.parametrize(
    ("rerun", "verdict"),
    [(300.0, "fails"), (500.0, "inconclusive"), (600.0, "artefact"), (860.0, "inconclusive")],
)
def test_the_rerun_of_a_figure_is_judged_by_its_band(tmp_path, rerun, verdict):
    """The band of 700 is 525 to 875: one run does not decide within 5 % of its edges."""
    row = judged(tmp_path, claim(region=None, band="level", published=700), rerun, around(0.5))
    assert (row["kind"], row["verdict"]) == ("figure", verdict)


def test_a_row_has_what_the_file_and_the_results_say(tmp_path):
    changes = {"rerun_scale": "a tenth of the text", "written": "after_pilot", "alias": "0-x"}
    row = judged(tmp_path, claim(published="0.50", **changes), rerun=0.45678)
    assert tuple(row) == COLUMNS
    assert {name: row[name] for name in COLUMNS if name not in ("ci_low", "ci_high", "reason")} == {
        "id": "x",
        "report": "exit-labels",
        "section": "Results",
        "statement": "A is half",
        "kind": "conclusion",
        "published": "0.50",
        "rerun": "0.4568",
        "rerun_scale": "a tenth of the text",
        "corrected": "0.5",
        "n": "3",
        "verdict": "holds",
        "written": "after_pilot",
        "alias": "0-x",
    }
    assert (row["ci_low"], row["ci_high"]) == ("0.4752", "0.5248")


def test_both_corpora_must_agree_and_the_published_text_is_shown(tmp_path):
    row = judged(tmp_path, claim(corpora=["sotu", "wikitext"]), 0.7, FAR, wikitext=(0.5, NEAR))
    assert (row["verdict"], row["rerun"], row["corrected"]) == ("inconclusive", "0.5", "0.5")
    assert "WikiText-2: holds; State of the Union 0.9 [0.8752, 0.9248]: artefact" in row["reason"]


def test_one_rerun_decides_whether_the_figure_reproduces_on_both(tmp_path):
    one = claim(corpora=["sotu", "wikitext"], reason={"artefact": "gives {rerun}, then {corrected}"})
    row = judged(tmp_path, one, 0.1, FAR, wikitext=(0.5, FAR))
    assert row["verdict"] == "artefact" and row["reason"].startswith("gives 0.5, then 0.9 (WikiText-2; State")


def test_without_results_of_the_published_text_the_other_corpus_decides_and_says_so(tmp_path):
    row = judged(tmp_path, claim(corpora=["sotu", "wikitext"]))
    assert row["verdict"] == "holds"
    assert "State of the Union alone, no corrected results of WikiText-2" in row["reason"]


UNDEFINED = [{"a": None, "b": 1.0}, *({**row, "b": 1.0} for row in NEAR[1:])]
"""A share whose whole is nothing for one random seed."""


def test_a_figure_that_some_random_seed_does_not_have_is_judged_where_all_have_it(tmp_path):
    row = judged(tmp_path, claim(corpora=["sotu", "wikitext"]), wikitext=(0.5, UNDEFINED))
    assert (row["verdict"], row["corrected"]) == ("holds", "0.5")
    assert "State of the Union alone, not defined for every random seed on WikiText-2" in row["reason"]


def test_a_figure_that_some_random_seed_does_not_have_on_its_only_text_says_so(tmp_path):
    row = judged(tmp_path, claim(corpora=["wikitext"]), wikitext=(0.5, UNDEFINED))
    assert (row["verdict"], row["n"]) == ("inconclusive", "0")
    assert row["reason"] == "It is not defined for every random seed on WikiText-2."


def test_a_figure_of_one_text_is_not_judged_on_another(tmp_path):
    row = judged(tmp_path, claim(corpora=["wikitext"]))
    assert (row["verdict"], row["corrected"]) == ("inconclusive", "")
    assert row["reason"] == "Not all of it has been run on WikiText-2 (labels)."


def test_a_reason_of_the_file_names_figures_in_braces(tmp_path):
    text = "{published}, {rerun}, {corrected}, {low} to {high}, {region}, {control}"
    row = judged(tmp_path, claim(published="0.50", reason={"artefact": text}), 0.55, FAR)
    assert row["reason"] == "0.50, 0.55, 0.9, 0.8752 to 0.9248, 0.4 to 0.6, 0.55 (State of the Union)."


@pytest.mark.parametrize(("rerun", "corrected"), [(0.61, NEAR), (0.5, NEAR[:2])])
def test_no_reason_of_the_file_hides_what_the_rule_alone_knows(tmp_path, rerun, corrected):
    row = judged(tmp_path, claim(reason={"inconclusive": "the interval is wide"}), rerun, corrected)
    assert row["verdict"] == "inconclusive" and "wide" not in row["reason"]


def differences(folder, ones, others, keep=True):
    """The ledger's row of a - b, whose figures by random seed are ``ones`` and ``others``."""
    row = claim(key="a - b", region=[-9, 9], published=None)
    home = home_with(folder, {"labels": [row]})
    rows = [{"a": one, "b": other} for one, other in zip(ones, others)]
    results(home, "labels", "sotu", {"a": 3.0, "b": 2.5}, rows)
    if not keep:
        seeds_path(home, "labels", "sotu").unlink()
    return ledger(home)[0]["x"]


ONES, OTHERS = [1.01, 1.52, 2.05, 0.97], [0.5, 1.0, 1.5, 0.5]


def test_a_difference_has_the_paired_interval_over_random_seeds(tmp_path):
    row = differences(tmp_path, ONES, OTHERS)
    paired = ttest_rel(ONES, OTHERS).confidence_interval(0.95)
    assert (row["ci_low"], row["ci_high"]) == (number(paired.low), number(paired.high))
    assert row["rerun"] == "0.5" and row["n"] == "4"
    assert row["corrected"] == number(float(np.mean(np.subtract(ONES, OTHERS))))


def test_without_values_by_random_seed_the_interval_of_a_difference_contains_the_paired_one(tmp_path):
    paired, wide = differences(tmp_path / "paired", ONES, OTHERS), differences(tmp_path, ONES, OTHERS, False)
    assert wide["corrected"] == paired["corrected"]
    assert float(wide["ci_low"]) < float(paired["ci_low"]) < float(paired["ci_high"]) < float(wide["ci_high"])


def test_figures_of_two_studies_are_paired_by_random_seed(tmp_path):
    row = claim(key="a - growth:a", region=[-9, 9], published=None)
    home = home_with(tmp_path, {"labels": [row]})
    for study, values in (("labels", ONES), ("growth", OTHERS)):
        results(home, study, "sotu", {"a": 1.0}, [{"a": value} for value in values])
    paired = ttest_rel(ONES, OTHERS).confidence_interval(0.95)
    assert ledger(home)[0]["x"]["ci_low"] == number(paired.low)
    results(home, "growth", "sotu", {"a": 1.0}, [{"a": value} for value in OTHERS[:3]])
    row = ledger(home)[0]["x"]
    assert row["n"] == "3" and float(row["ci_low"]) < paired.low


def test_values_by_random_seed_of_other_results_are_refused(tmp_path):
    home = home_with(tmp_path, {"labels": [claim(key="a - b", region=[-9, 9], published=None)]})
    results(home, "labels", "sotu", {"a": 1.0, "b": 1.0}, [{"a": one, "b": 1.0} for one in ONES])
    path = seeds_path(home, "labels", "sotu")
    path.write_text(path.read_text().replace("1.01", "1.02"))
    with pytest.raises(UserError, match=r"labels: x: .*labels\.sotu\.csv: a is not that of the result file"):
        write_ledger(home)


def test_a_ratio_serves_the_rerun_only(tmp_path):
    row = claim(key="a / b", corrected_key="a", published=None)
    home = home_with(tmp_path, {"labels": [row]})
    results(home, "labels", "sotu", {"a": 0.5, "b": 0.1}, NEAR)
    assert ledger(home)[0]["x"]["rerun"] == "5"


def test_what_holds_by_construction_has_no_interval_and_all_digits(tmp_path):
    row = claim(construction=True, region=[70748929, 70748929], published=70748929)
    row = judged(tmp_path, row, 70748929, [{"a": 70748929.0}] * 3)
    assert row["kind"] == "construction" and row["verdict"] == "holds"
    assert {row[name] for name in ("published", "rerun", "corrected", "ci_low", "ci_high")} == {"70748929"}


def test_rounding_is_no_width(tmp_path):
    row = judged(
        tmp_path, claim(construction=True), corrected=[{"a": 0.1 + 0.2 + 0.2}, {"a": 0.5}, {"a": 0.5}]
    )
    assert row["kind"] == "construction" and row["verdict"] == "holds"


def test_an_interval_with_a_width_holds_by_no_construction(tmp_path):
    with pytest.raises(UserError, match="labels: x: construction: the corrected figure has an interval"):
        judged(tmp_path, claim(construction=True))


@pytest.mark.parametrize(
    ("published", "corrected", "changes", "verdict"),
    [
        (None, NEAR, {}, "inconclusive"),
        ({"a": 0.5}, None, {}, "inconclusive"),
        (None, NEAR, {"level_of": "machine"}, "not comparable"),
    ],
)
def test_claims_of_a_study_that_has_not_been_run_say_so(tmp_path, published, corrected, changes, verdict):
    home = home_with(tmp_path, {"labels": [claim(**changes)]})
    results(home, "labels", "sotu", published, corrected)
    row = ledger(home)[0]["x"]
    assert (row["verdict"], row["n"], row["corrected"], row["rerun"]) == (verdict, "0", "", "")
    assert row["reason"] == "Not all of it has been run on State of the Union (labels)."


def test_missing_figures_and_files_are_named(tmp_path):
    home = home_with(tmp_path, {"labels": [claim(corrected_key="b")]})
    results(home, "labels", "sotu", {"a": 0.5}, NEAR)
    with pytest.raises(UserError, match=r"studies/labels: x: .*labels\.sotu\.json: corrected has no b; run"):
        write_ledger(home)


@pytest.mark.parametrize(
    ("corrected", "answer"),
    [(NEAR, "yes"), (FAR, "no"), (around(0.6), "no answer yet"), (None, "no answer yet")],
)
def test_questions_are_answered_apart(tmp_path, corrected, answer):
    home = home_with(tmp_path, {"labels": [claim()]}, {"labels": [question(alias="0-q")]})
    results(home, "labels", "sotu", {"a": 0.5}, corrected)
    claims, questions = ledger(home)
    assert list(claims) == ["x"] and list(questions) == ["q"]
    row = questions["q"]
    assert tuple(row) == QUESTION_COLUMNS
    assert (row["answer"], row["study"], row["report"], row["alias"]) == (
        answer,
        "labels",
        "exit-labels",
        "0-q",
    )


def test_a_question_needs_no_figure_of_the_published_protocol(tmp_path):
    home = home_with(tmp_path, questions={"signals": [question(), question(id="r", key="b")]})
    results(home, "signals", "sotu", {"a": 0.2}, [{**row, "b": row["a"]} for row in NEAR])
    questions = ledger(home)[1]
    assert (questions["q"]["rerun"], questions["r"]["rerun"], questions["r"]["report"]) == ("0.2", "", "")
    assert questions["r"]["answer"] == "yes" and questions["r"]["reason"].endswith("(State of the Union).")


def test_corpora_that_disagree_leave_a_question_open(tmp_path):
    home = home_with(tmp_path, questions={"signals": [question(corpora=["sotu", "wikitext"])]})
    results(home, "signals", "sotu", None, NEAR)
    results(home, "signals", "wikitext", None, FAR)
    row = ledger(home)[1]["q"]
    assert row["answer"] == "no answer yet" and "WikiText-2: no; State of the Union" in row["reason"]


def test_the_check_fails_on_a_file_that_was_changed_or_is_missing(tmp_path, capsys):
    home = home_with(tmp_path, {"labels": [claim()]}, {"labels": [question()]})
    results(home, "labels", "sotu", {"a": 0.5}, NEAR)
    main([], home)
    assert capsys.readouterr().out.count("wrote ") == 2
    main(["--check"], home)
    before = (home / "claims.csv").read_bytes()
    (home / "claims.csv").write_bytes(before.replace(b"holds", b"fails"))
    with pytest.raises(UserError, match=r"claims\.csv: differs .*\nrun `python -m studies ledger`"):
        check_ledger(home)
    (home / "claims.csv").write_bytes(before)
    (home / "questions.csv").unlink()
    with pytest.raises(UserError, match=r"questions\.csv: is missing"):
        check_ledger(home)
    assert (home / "claims.csv").read_bytes() == before


def test_the_check_fails_where_results_changed(tmp_path):
    home = home_with(tmp_path, {"labels": [claim()]})
    results(home, "labels", "sotu", {"a": 0.5}, NEAR)
    write_ledger(home)
    check_ledger(home)
    results(home, "labels", "sotu", {"a": 0.5}, FAR)
    with pytest.raises(UserError, match=r"claims\.csv: differs"):
        check_ledger(home)


def test_check_and_validate_exclude_each_other(tmp_path):
    with pytest.raises(SystemExit):
        main(["--check", "--validate"], home_with(tmp_path))


def test_files_have_unix_lines_and_equal_bytes(tmp_path):
    home = home_with(tmp_path, {"labels": [claim()]})
    results(home, "labels", "sotu", {"a": 0.5}, NEAR)
    before = [path.read_bytes() for path in write_ledger(home)]
    assert before == [path.read_bytes() for path in write_ledger(home)]
    assert not any(b"\r" in data for data in before) and csv_rows(home / "questions.csv") == []


def test_every_claim_and_question_of_the_studies_gets_a_row(made_up_studies):
    claims, questions = ledger(made_up_studies)
    assert len(claims) >= 90
    for row in claims.values():
        assert row["verdict"] in VERDICTS and row["n"] == "3" and row["reason"].endswith(".")
        assert float(row["ci_low"]) <= float(row["corrected"]) <= float(row["ci_high"])
    assert all(row["n"] == "3" and row["reason"].endswith(").") for row in questions.values())


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1095.46, "1095"),
        (0.048149, "0.04815"),
        (-0.0, "0"),
        (69830.4, "69830"),
        (70748929.0, "70748929"),
        (-12345678, "-12345678"),
        (1e-12, "1e-12"),
        (1e20, "1e+20"),
        (None, ""),
        (3, "3"),
        (-0.547, "-0.547"),
    ],
)
def test_numbers_have_four_significant_digits_and_whole_ones_all(value, text):
    assert exact(value) == text
