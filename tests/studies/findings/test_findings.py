"""The findings on made-up results: an index, a page per report, our questions apart, and no number that no
file holds.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

from offramp.errors import UserError
from studies.common.study import REPORTS
from studies.findings.findings import (
    FOLDER,
    OWN_QUESTIONS,
    TEMPLATES,
    check_findings,
    main,
    write_findings,
)
from studies.findings.rows import in_words, numbers
from studies.ledger.ledger import write_ledger
from studies.ledger.verdict import VERDICTS
from tests.fixtures.made_up_claims import around, claim, csv_rows, home_with, question, results

JUDGED = VERDICTS[:-1]
"""All verdicts but "not comparable", which no total counts."""

NEAR, FAR = around(0.5), around(0.9)
SMALLER = {"smaller": True, "rerun_scale": "3 of 10 epochs"}
FIGURE = {"region": None, "band": "share"}
CLAIMS = {
    "labels": [
        claim(id="l-holds", statement="HRM | beats it", published="0.50", written="after_pilot"),
        claim(id="l-fails", key="low", statement="It is low", region=[0.0, 0.1], published=0.05),
        claim(id="l-figure", statement="The figure", **FIGURE),
        claim(id="l-level", statement="The level", level_of="machine", **FIGURE),
        claim(id="l-text", statement="The other level", level_of="text"),
        claim(id="l-built", key="size", statement="The size", region=[7, 7], published=7, construction=True),
    ],
    "growth": [
        claim(id="g-scale", key="low", statement="LPT helps", region=[0.0, 0.1], published=0.05, **SMALLER),
        claim(id="g-edge", statement="It is over", region=[0.5, 1], published=0.6, written="after_results"),
    ],
}
QUESTIONS = {
    "growth": [question(id="q-yes"), question(id="q-no", key="low", statement="Is it low?", region=[0, 0.1])],
    "signals": [question(id="q-open", statement="Is it over?", region=[0.5, 1])],
}
HEADROOM = {
    "title": "Headroom by signal",
    "note": "At half of the tokens.",
    "columns": ["signal", "share", "headroom"],
    "rows": [
        ["max_prob", 0.3, 0.12],
        ["max_prob", 0.5, 0.1],
        ["random", 0.3, 0.0],
        ["random", 0.5, [0.0, -0.01, 0.01]],
        ["a | b", 0.3, {"value": 0.5, "low": 0.4, "high": 0.6}],
        ["a | b", 0.5, None],
    ],
    "plot": {"x": "share", "y": "headroom", "group": "signal"},
}
LONG = {"title": "Twenty rows", "columns": ["row"], "rows": [[row] for row in range(20)]}


def made_up(folder: Path) -> Path:
    """The folder of all studies with claims of several verdicts, results, ledger and findings."""
    home = home_with(folder, CLAIMS, QUESTIONS)
    for study in ("labels", "growth"):
        rows = [{**row, "low": 0.5 + row["a"] / 10, "size": 7.0} for row in NEAR]
        results(home, study, "sotu", {"a": 0.5, "low": 0.5, "size": 7.0}, rows)
    results(home, "signals", "sotu", None, NEAR, {"headroom": HEADROOM, "long": LONG})
    write_ledger(home)
    write_findings(home)
    return home


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return made_up(tmp_path_factory.mktemp("findings"))


@pytest.fixture(scope="module")
def docs(home) -> Path:
    return home.parent / FOLDER


@pytest.fixture(scope="module")
def index(docs) -> str:
    return (docs / "index.md").read_text(encoding="utf-8")


def page(docs: Path, name: str) -> str:
    return (docs / f"{name}.md").read_text(encoding="utf-8")


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def table_row(text: str, start: str) -> list[str]:
    """The cells of the first table row that begins so."""
    return cells(next(line for line in text.splitlines() if line.startswith(f"| {start}")))


def test_there_is_a_page_for_every_report_and_one_for_our_own_questions(docs):
    assert {path.stem for path in docs.glob("*.md")} == {"index", OWN_QUESTIONS, *REPORTS}


def test_same_results_same_bytes(home, docs):
    def everything() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in docs.rglob("*.*")}

    before = everything()
    write_findings(home)
    assert everything() == before and len(before) > len(REPORTS)


def test_a_page_tells_what_its_report_concluded_then_every_conclusion_with_figures_and_why(home, docs):
    rows = {row["id"]: row for row in csv_rows(home / "claims.csv")}
    for report, ids in (
        ("exit-labels", ["l-holds", "l-fails"]),
        ("character-systems", ["g-scale", "g-edge"]),
    ):
        text = page(docs, report)
        assert text.index("## What the report concluded") < text.index("## What holds, and why")
        assert text.index("## What holds, and why") < text.index("## What the studies measured")
        for id in ids:
            row = rows[id]
            line = next(line for line in text.splitlines() if f"`{id}`" in line)
            statement, published, rerun, corrected, why, _ = cells(line)
            assert statement.replace("\\|", "|") == row["statement"]
            assert (published, rerun, why) == (row["published"], row["rerun"], row["reason"])
            assert corrected == f"{row['corrected']} [{row['ci_low']}, {row['ci_high']}]"
            above = text[: text.index(line)].rsplit("\n### ", 1)[1].splitlines()[0]
            assert above.lower() == row["verdict"]


def test_figures_constructions_and_levels_stay_in_the_table_of_claims_and_are_counted_apart(docs):
    text = page(docs, "exit-labels")
    assert not any(f"`{id}`" in text for id in ("l-figure", "l-level", "l-text", "l-built"))
    assert "Of 2 conclusions of the report, 1 holds and 1 fails." in text
    assert "Of 1 figures that merely describe, 1 holds; they are in `studies/claims.csv`." in text
    assert "2 more are levels of another text, vocabulary or machine and count nowhere." in text
    assert "1 hold by construction" in text


def test_the_index_counts_verdicts_before_anything_else(index):
    assert index.index("## Conclusions first") < index.index("## How to read the verdicts")
    assert table_row(index, "report") == ["report", "about", "conclusions", *JUDGED]
    figures = index[index.index("Figures that merely describe") :]
    expected = {
        "[exit-labels]": ([2, 1, 0, 0, 1, 0, 0], [1, 1, 0, 0, 0, 0, 0]),
        "[character-systems]": ([2, 0, 0, 0, 0, 1, 1], [0] * 7),
        "[context-vectors]": ([0] * 7, [0] * 7),
        "all": ([4, 1, 0, 0, 1, 1, 1], [1, 1, 0, 0, 0, 0, 0]),
    }
    for start, (of_conclusions, of_figures) in expected.items():
        assert list(map(int, table_row(index, start)[2:])) == of_conclusions
        assert list(map(int, table_row(figures, start)[2:])) == of_figures


def test_totals_are_told_by_when_the_rules_were_written(index, docs):
    assert table_row(index, "conclusions | before any result")[2:] == list("2000110")
    assert table_row(index, "conclusions | after a pilot")[2:] == list("1100000")
    assert table_row(index, "conclusions | with the results known")[2:] == list("1000001")
    assert table_row(index, "figures | before any result")[2:] == list("1100000")
    assert "figures | after a pilot" not in index
    assert table_row(page(docs, "exit-labels"), "conclusions | after a pilot")[2:] == list("1100000")


def test_the_index_says_how_many_intervals_there_are_and_how_many_miss_by_chance(home, index):
    assert "5 of these verdicts rest on a 95 % interval each." in index
    assert "about 0 of them miss" in index
    rows = [claim(id=f"x{row}") for row in range(60)]
    other = home_with(home.parent / "many", {"labels": rows})
    results(other, "labels", "sotu", {"a": 0.5}, NEAR)
    write_ledger(other)
    text = write_findings(other).read_text(encoding="utf-8")
    assert "60 of these verdicts" in text and "about 3 of them miss" in text


def test_our_questions_stand_apart_and_in_no_total(index, docs):
    text = page(docs, OWN_QUESTIONS)
    for id, answer in (("q-yes", "yes"), ("q-no", "no"), ("q-open", "no answer yet")):
        line = next(line for line in text.splitlines() if f"`{id}`" in line)
        assert cells(line)[1] == answer and cells(line)[4] == "before any result"
    assert text.index("## character-systems") < text.index("`q-yes`") < text.index("## of no report")
    assert "their answers are yes: 1, no: 1,\nno answer yet: 1." in index
    assert not any("`q-" in page(docs, report) for report in REPORTS)
    assert "2 [questions of ours](own-questions.md#character-systems)" in page(docs, "character-systems")


def test_words_of_the_reports_are_explained_before_their_first_use(docs, index):
    text = page(docs, "character-systems")
    for word in ("HRM", "OACD", "IRT", "LPT"):
        assert re.search(rf"\b{word}\b", text).start() == text.index(f"* **{word}**: ") + 4
    assert "* **HRM**: " in page(docs, "exit-labels") and "OACD" not in page(docs, "exit-labels")
    assert "**LPT**" not in index


def test_tables_sentences_and_plots_of_a_study_are_shown(docs):
    text = page(docs, OWN_QUESTIONS)
    assert "| signal | share | headroom |" in text and "The figure a is 0.5 [0.4752, 0.5248]." in text
    assert "| random | 0.5 | 0 [-0.01, 0.01] |" in text and "| a \\| b | 0.3 | 0.5 [0.4, 0.6] |" in text
    figures = re.findall(r"\]\((figures/\S+)\)", text)
    assert figures
    for name in figures:
        assert (docs / name).read_text().count("<svg") == 1


def test_long_tables_are_folded(docs):
    text = page(docs, OWN_QUESTIONS)
    folded = re.findall(r"<details><summary>(.*?)</summary>\n\n\| row \|\n.*?\n\n</details>", text, re.DOTALL)
    assert folded == ["Twenty rows"] and text.count("<details>") == 1


def test_flaws_are_told_once(docs):
    assert page(docs, "exit-labels").count("* labels are read from the test text") == 1


def test_links_between_pages_lead_somewhere(docs):
    for path in docs.glob("*.md"):
        for target, place in re.findall(r"\]\(([^)#]+)(#[^)]*)?\)", path.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (docs / target).exists(), f"{path.name}: {target}"
            assert not place or f"\n## {place[1:]}\n" in (docs / target).read_text(encoding="utf-8")


def test_a_study_without_results_says_how_to_make_them(tmp_path):
    home = home_with(tmp_path)
    write_ledger(home)
    index = write_findings(home)
    line = "No results of this study yet: `python -m studies labels --corpus sotu` makes them."
    assert line in page(index.parent, "exit-labels")
    assert "No results yet: `python -m studies labels --corpus sotu`" in index.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [*(path.name for path in TEMPLATES.glob("*.j2")), "reports.yaml"])
def test_no_number_is_typed_into_a_template(name):
    text = (TEMPLATES / name).read_text(encoding="utf-8")
    text = re.sub(r"{{.*?}}|{%.*?%}|{#.*?#}", "", text, flags=re.DOTALL)
    assert not re.findall(r"[0-9]", text), name


def test_every_report_has_its_conclusions_told():
    text = (TEMPLATES / "reports.yaml").read_text(encoding="utf-8")
    assert re.findall(r"^  ([a-z]+-[a-z]+): >-$", text, flags=re.MULTILINE) == list(REPORTS)


def test_markdown_tables_are_whole(docs):
    """Every row of a table has as many cells as its header."""
    for path in docs.glob("*.md"):
        for table in re.findall(r"(?:^\|.*\n)+", path.read_text(encoding="utf-8"), flags=re.MULTILINE):
            widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
            assert len(widths) == 1 and len(table.splitlines()) >= 2, table


def test_findings_refuse_a_ledger_of_other_claims(tmp_path):
    home = home_with(tmp_path, CLAIMS)
    with pytest.raises(UserError, match=r"claims\.csv is missing; run `python -m studies ledger`"):
        write_findings(home)
    write_ledger(home)
    whole = (home / "claims.csv").read_text()
    for other in (whole.rsplit("\n", 2)[0] + "\n", whole.replace("It is low", "It is high")):
        assert other != whole
        (home / "claims.csv").write_text(other)
        with pytest.raises(
            UserError, match=r"claims\.csv was not written from .* run `python -m studies led"
        ):
            write_findings(home)


def test_state_of_the_union_alone_is_said(index, tmp_path):
    assert "All results are on the State of the Union addresses." in index
    home = home_with(tmp_path)
    results(home, "labels", "wikitext", {"a": 0.5}, NEAR)
    write_ledger(home)
    assert "There are two corpora, both English." in write_findings(home).read_text(encoding="utf-8")


def test_pages_of_earlier_runs_go(home, tmp_path):
    shutil.copytree(home, tmp_path / "studies")
    old = tmp_path / FOLDER / "report-that-is-gone.md"
    old.parent.mkdir(parents=True)
    old.write_text("old")
    write_findings(tmp_path / "studies")
    assert not old.exists()


def test_the_check_fails_on_pages_that_are_changed_missing_or_too_many(tmp_path, capsys):
    home = made_up(tmp_path)
    main(["--check"], home)
    assert "up to date" in capsys.readouterr().out
    docs = home.parent / FOLDER
    (docs / "index.md").write_text(page(docs, "index").replace("hold", "held"))
    (docs / "exit-labels.md").unlink()
    (docs / "old.md").write_text("old")
    with pytest.raises(UserError) as caught:
        check_findings(home)
    told = str(caught.value)
    assert "index.md: differs from what would be written" in told and "exit-labels.md: is missing" in told
    assert "old.md: would not be written" in told and told.endswith("commit what it writes")
    assert "loss-prediction" not in told and (docs / "old.md").exists()


def test_counts_in_words_name_only_what_there_is():
    rows = [{"verdict": verdict} for verdict in ("fails", "holds", "artefact", "artefact")]
    assert in_words(rows) == "1 holds, 2 are artefacts and 1 fails"
    assert in_words(rows[:1]) == "1 fails" and numbers(rows) == [4, 1, 0, 2, 1, 0, 0]


def test_findings_of_all_studies_can_be_written(made_up_studies):
    docs = made_up_studies.parent / FOLDER
    for report in REPORTS:
        assert "## What holds, and why" in page(docs, report)
