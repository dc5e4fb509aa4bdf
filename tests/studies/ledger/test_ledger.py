"""The claims ledger on made-up results: what it promises whatever the numbers are."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from offramp.errors import UserError
from studies.common.results import number, write_results
from studies.common.study import REPORTS, Outcome, Study
from studies.ledger.figures import Results
from studies.ledger.ledger import COLUMNS, Claim, judge_claim, read_claims, write_ledger
from studies.ledger.verdict import VERDICTS, Region
from tests.fixtures.study_results import home_of_studies, ledger_rows, text_called


def changed(home: Path, folder: Path, name: str, change) -> Path:
    """A copy of the results in which ``change(result)`` was applied to one file."""
    copy = shutil.copytree(home, folder / "studies")
    path = copy / "metrics" / f"{name}.json"
    result = json.loads(path.read_text())
    change(result)
    path.write_text(json.dumps(result))
    return copy


def test_every_claim_resolves_and_gets_a_row(made_up_studies):
    rows = ledger_rows(made_up_studies)
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) >= 90 and len({row["id"] for row in rows}) == len(rows)
    assert [row["id"] for row in rows] == [claim.id for claim in read_claims()]
    for row in rows:
        assert row["verdict"] in VERDICTS and row["report"] in REPORTS and row["n"] == "3"
        assert all(row[name] for name in COLUMNS if name != "published") and row["reason"].endswith(".")
        assert float(row["ci_low"]) <= float(row["corrected"]) <= float(row["ci_high"])
    assert {row["report"] for row in rows} == set(REPORTS)


def test_the_ledger_has_the_columns_of_its_readers_and_unix_lines(made_up_studies):
    data = write_ledger(made_up_studies).read_bytes()
    assert data.startswith(
        b"id,report,section,statement,published,rerun,corrected,ci_low,ci_high,n,verdict,reason,alias\n"
    )
    assert b"\r" not in data


def claim(**values) -> Claim:
    given = {
        "id": "x",
        "alias": "0",
        "report": "exit-labels",
        "section": "1",
        "statement": "s",
        "study": "exit_labels",
        "key": "a",
        "corrected_key": "a",
        "corpora": ["sotu", "wikitext"],
        "region": Region(0.4, 0.6),
        "published": 0.5,
        "conclusion": True,
    } | values
    return Claim(**given)


def judged(folder: Path, one: Claim, wikitext: tuple | None, sotu: tuple) -> dict:
    """The row of a claim on figures (published a, corrected a by seed) per corpus; b is a tenth of a."""
    home = home_of_studies(folder)
    for corpus, figures in (("wikitext", wikitext), ("sotu", sotu)):
        if figures:
            published, corrected = figures
            rows = [{"a": value, "b": value / 10} for value in corrected]
            outcomes = {
                "published": Outcome([{"a": published, "b": published / 10}]),
                "corrected": Outcome(rows),
            }
            write_results(home, Study("exit_labels", home), text_called(corpus), outcomes, range(len(rows)))
    return judge_claim(one, Results(home, ["exit_labels"])).row()


NEAR, FAR = [0.49, 0.5, 0.51], [0.89, 0.9, 0.91]


def test_both_corpora_must_agree_and_the_published_text_is_shown(tmp_path):
    row = judged(tmp_path, claim(), (0.5, NEAR), (0.7, FAR))
    assert (row["verdict"], row["rerun"], row["corrected"]) == ("inconclusive", "0.5", "0.5")
    assert "WikiText-2: holds; State of the Union 0.9 [0.8752, 0.9248]: artefact" in row["reason"]


def test_one_rerun_decides_whether_the_figure_reproduces_on_both(tmp_path):
    row = judged(
        tmp_path, claim(reason={"artefact": "gives {rerun}, then {corrected}"}), (0.5, FAR), (0.1, FAR)
    )
    assert row["verdict"] == "artefact" and row["reason"].startswith("gives 0.5, then 0.9 (WikiText-2; State")


def test_without_results_of_the_published_text_the_other_corpus_decides_and_says_so(tmp_path):
    row = judged(tmp_path, claim(corpora=["wikitext"]), None, (0.5, NEAR))
    assert (
        row["verdict"] == "holds"
        and "State of the Union alone, no corrected results of WikiText-2" in row["reason"]
    )


def test_two_seeds_decide_nothing(tmp_path):
    assert judged(tmp_path, claim(), None, (0.5, NEAR[:2]))["verdict"] == "inconclusive"


def test_an_interval_of_a_difference_contains_the_paired_one(tmp_path):
    row = judged(tmp_path / "difference", claim(key="a - b", corrected_key="a - b"), None, (0.5, NEAR))
    paired = judged(tmp_path / "paired", claim(), None, (0.45, [0.9 * value for value in NEAR]))
    assert row["rerun"] == paired["rerun"] == "0.45" and float(row["corrected"]) == float(paired["corrected"])
    assert float(row["ci_low"]) <= float(paired["ci_low"]) and float(paired["ci_high"]) <= float(
        row["ci_high"]
    )


def test_a_ratio_serves_the_rerun_only(tmp_path):
    assert judged(tmp_path / "once", claim(key="a / b"), None, (0.5, NEAR))["rerun"] == "10"
    with pytest.raises(UserError, match="corrected_key"):
        judged(tmp_path / "again", claim(corrected_key="a / b"), None, (0.5, NEAR))


def test_every_reason_can_be_written():
    words = dict.fromkeys(("published", "rerun", "corrected", "low", "high", "control"), "1")
    for one in read_claims():
        for text in one.reason.values():
            text.format(**words)
            assert not text.endswith(".")


def test_missing_figures_and_files_are_named(made_up_studies, tmp_path):
    def drop(result):
        del result["corrected"]["values"]["dip_p"]

    with pytest.raises(UserError, match=r"loss-prediction-bimodal.*loss_prediction\.sotu\.json.*dip_p"):
        write_ledger(changed(made_up_studies, tmp_path, "loss_prediction.sotu", drop))


def test_claims_of_a_study_that_has_not_been_run_say_so(made_up_studies, tmp_path):
    home = shutil.copytree(made_up_studies, tmp_path / "studies")
    for file in (home / "metrics").glob("exit_labels.*"):
        file.unlink()
    rows = ledger_rows(home)
    assert [row["id"] for row in rows] == [claim.id for claim in read_claims()]
    without = {claim.id for claim in read_claims() if "exit_labels" in claim.studies}
    assert {row["id"] for row in rows if "has not been run" in row["reason"]} == without
    judged_by = {(row["verdict"], row["corrected"]) for row in rows if row["id"] in without}
    assert judged_by == {("inconclusive", "")}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"band": "wide"}, "band wide"),
        ({"region": [0, 1]}, "give a region"),
        ({"corpora": ["nowhere"]}, "nowhere"),
        ({"keyy": "a"}, "keyy"),
        ({"reason": {"true": "x"}}, "reason true"),
    ],
)
def test_a_claim_that_cannot_be_judged_is_refused(tmp_path, change, message):
    home = home_of_studies(tmp_path)
    file = home / "exit_labels/claims.yaml"
    groups = YAML(typ="safe").load(file.read_text())
    groups[0]["rows"][0] |= change
    with file.open("w") as stream:
        YAML(typ="safe").dump(groups, stream)
    with pytest.raises(UserError, match=message):
        read_claims(home)


def test_claims_of_a_study_without_a_report_are_refused(tmp_path):
    home = home_of_studies(tmp_path)
    shutil.copy(home / "exit_labels/claims.yaml", home / "exit_signals/claims.yaml")
    with pytest.raises(UserError, match=r"exit_signals/claims\.yaml.*report is None"):
        read_claims(home)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1095.46, "1095"),
        (0.048149, "0.04815"),
        (-0.0, "0"),
        (69830.4, "69830"),
        (1e-12, "1e-12"),
        (None, ""),
        (3, "3"),
        (-0.547, "-0.547"),
    ],
)
def test_numbers_have_four_significant_digits(value, text):
    assert number(value) == text
