"""The findings on made-up results: an index, a page per report, and nothing that no file holds."""

from __future__ import annotations

import re
import shutil

import pytest

from offramp.errors import UserError
from studies.common.study import REPORTS
from studies.findings.findings import FOLDER, OWN_QUESTIONS, TEMPLATES, write_findings
from studies.ledger.ledger import read_claims, write_ledger
from tests.fixtures.study_results import fabricate, home_of_studies, ledger_rows


@pytest.fixture(scope="module")
def docs(made_up_studies):
    return made_up_studies.parent / FOLDER


@pytest.fixture(scope="module")
def conclusions(made_up_studies):
    """Rows of the ledger that are conclusions."""
    wanted = {claim.id for claim in read_claims() if claim.conclusion}
    return [row for row in ledger_rows(made_up_studies) if row["id"] in wanted]


def test_there_is_a_page_for_every_report_and_one_for_our_own_questions(docs):
    assert {path.stem for path in docs.glob("*.md")} == {"index", OWN_QUESTIONS, *REPORTS}


def test_same_results_same_bytes(made_up_studies, docs):
    def everything() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in docs.rglob("*.*")}

    before = everything()
    write_findings(made_up_studies)
    assert everything() == before and len(before) > len(REPORTS)


def test_a_page_tells_every_conclusion_of_its_report_with_its_figures(docs, conclusions):
    pages = {report: (docs / f"{report}.md").read_text(encoding="utf-8") for report in REPORTS}
    for row in conclusions:
        line = next(line for line in pages[row["report"]].splitlines() if f"`{row['id']}`" in line)
        assert row["statement"] in line and row["reason"] in line and row["rerun"] in line
        assert f"{row['corrected']} [{row['ci_low']}, {row['ci_high']}]" in line


def test_figures_that_merely_describe_stay_in_the_table_of_claims(docs, conclusions):
    pages = "".join(path.read_text(encoding="utf-8") for path in docs.glob("*.md"))
    described = {claim.id for claim in read_claims()} - {row["id"] for row in conclusions}
    assert described and not any(f"`{id}`" in pages for id in described)


def test_the_index_counts_verdicts_before_anything_else(docs, conclusions):
    index = (docs / "index.md").read_text(encoding="utf-8")
    assert index.index("## Conclusions first") < index.index("## How to read the verdicts")
    for report in REPORTS:
        row = next(line for line in index.splitlines() if line.startswith(f"| [{report}]"))
        of_report = [one["verdict"] for one in conclusions if one["report"] == report]
        cells = [cell.strip() for cell in row.split("|")[3:-1]]
        counts = [of_report.count(verdict) for verdict in ("holds", "fails", "artefact", "inconclusive")]
        assert list(map(int, cells)) == [len(of_report), *counts]


def test_tables_sentences_and_plots_of_a_study_are_shown(docs):
    page = (docs / f"{OWN_QUESTIONS}.md").read_text(encoding="utf-8")
    assert "| signal | share | headroom |" in page and "Depth decides on wikitext." in page
    assert "| random | 0.5 | 0 [-0.01, 0.01] |" in page and "| a \\| b | 0.3 | 0.5 [0.4, 0.6] |" in page
    figures = re.findall(r"\]\((figures/\S+)\)", page)
    assert figures
    for name in figures:
        assert (docs / name).read_text().count("<svg") == 1


def test_links_between_pages_lead_somewhere(docs):
    for page in docs.glob("*.md"):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            assert target.startswith("https://") or (docs / target).exists(), f"{page.name}: {target}"


def test_a_study_without_results_says_how_to_make_them(docs):
    page = (docs / "exit-labels.md").read_text(encoding="utf-8")
    assert "No results of this study yet: `python -m studies blockwise_gap --corpus sotu` makes them." in page


def test_no_number_is_typed_into_a_template():
    for template in TEMPLATES.glob("*.j2"):
        text = re.sub(r"{{.*?}}|{%.*?%}|{#.*?#}", "", template.read_text(encoding="utf-8"), flags=re.DOTALL)
        assert not re.findall(r"[0-9]", text), template.name


def test_markdown_tables_are_whole(docs):
    """Every row of a table has as many cells as its header."""
    for page in docs.glob("*.md"):
        for table in re.findall(r"(?:^\|.*\n)+", page.read_text(encoding="utf-8"), flags=re.MULTILINE):
            widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
            assert len(widths) == 1 and len(table.splitlines()) >= 2, table


def test_findings_refuse_a_ledger_of_other_claims(made_up_studies, tmp_path):
    home = home_of_studies(tmp_path)
    with pytest.raises(UserError, match=r"claims\.csv is missing"):
        write_findings(home)
    lines = (made_up_studies / "claims.csv").read_text().splitlines()
    (home / "claims.csv").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(UserError, match="run `python -m studies ledger`"):
        write_findings(home)


def test_state_of_the_union_alone_is_enough(tmp_path):
    home = fabricate(home_of_studies(tmp_path), corpora=("pangram", "sotu"))
    write_ledger(home)
    index = write_findings(home).read_text(encoding="utf-8")
    assert "All results are on the State of the Union addresses." in index


def test_pages_of_earlier_runs_go(made_up_studies, tmp_path):
    shutil.copytree(made_up_studies, tmp_path / "studies")
    old = tmp_path / FOLDER / "report-that-is-gone.md"
    old.parent.mkdir(parents=True)
    old.write_text("old")
    write_findings(tmp_path / "studies")
    assert not old.exists()
