"""The findings: docs/studies, a page per report, one of our own questions, and an index with the conclusions
first.

    python -m studies findings            write docs/studies
    python -m studies findings --check    fail if they differ from what would be written

Reads claims.csv and questions.csv, the results below metrics/, every study.yaml and reports.yaml; same
results, same bytes. A study may have no results yet. Figures that merely describe are in claims.csv alone.
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from offramp.artifacts.files import write_text
from studies.common.results import StudyResults, number, read_results
from studies.common.study import HOME, REPORTS, Protocol, Study, read_yaml, studies
from studies.findings.plots import as_rows, draw_plot, plot_of
from studies.findings.rows import JUDGED, WRITTEN, Counts, Row, numbers, read_ledger
from studies.findings.tables import cell, markdown
from studies.ledger.check import check_same
from studies.ledger.figures import CORPORA
from studies.ledger.verdict import ANSWERS, FEWEST, LEVEL, NEAR, SHARE

TEMPLATES = Path(__file__).parent
FOLDER = Path("docs/studies")
"""Relative to the root of the repository, the parent of the folder of all studies."""

OWN_QUESTIONS = "own-questions"
"""The page of questions that no report answers."""

CONFIDENCE = 0.95
"""Of the intervals of all studies."""

LONGEST, SHORT = 40, 10
"""Rows of a table above which a page points to the result file, and up to which it is shown unfolded."""


@dataclass(frozen=True)
class Part:
    """What a study measured on one text, as a page shows it."""

    corpus: str
    sentences: list[str]
    tables: list[dict[str, Any]]
    plot: dict[str, str] | None


@dataclass(frozen=True)
class View:
    """A study as a page shows it."""

    study: Study
    parts: list[Part]
    counts: Counts
    questions: list[Row]
    headline: str
    """The sentence that stands for the study in the index; empty where nothing has been run."""


@dataclass(frozen=True)
class Page:
    """A report and its studies, or the studies of no report (``concluded`` is empty)."""

    name: str
    title: str
    concluded: str
    """What the report concluded, in our words."""
    views: list[View]
    counts: Counts

    @property
    def questions(self) -> list[Row]:
        return [row for view in self.views for row in view.questions]

    @property
    def flaws(self) -> list[str]:
        """Every flaw of the published protocols once."""
        return list(dict.fromkeys(flaw for view in self.views for flaw in view.study.about.flaws))

    def by_verdict(self) -> dict[str, str]:
        """Conclusions as a table per verdict, in the order of the studies."""
        order = [view.study.name for view in self.views]
        rows = sorted(self.counts.conclusions, key=lambda row: order.index(row["study"]))
        tables = {verdict: [row for row in rows if row["verdict"] == verdict] for verdict in JUDGED}
        return {verdict: claims_table(rows) for verdict, rows in tables.items() if rows}


def write_findings(home: Path = HOME, folder: Path | None = None) -> Path:
    """Write docs/studies anew to ``folder`` (default: beside ``home``, the folder of all studies); pages of
    earlier runs go. Returns the index.

    Raises UserError if the ledger is missing or was written for other claims.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    known, texts = studies(home), read_yaml(TEMPLATES / "reports.yaml")
    results = {(name, corpus): read_results(home, name, corpus) for name in known for corpus in CORPORA}
    claims, questions = read_ledger(home)
    pages = _pages(known, results, claims, questions, texts["concluded"])
    reports = [page for page in pages if page.concluded]
    folder = folder or home.parent / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    counts = Counts(claims)
    facts = {
        "pages": pages,
        "reports": reports,
        "counts": counts,
        "conclusions": _totals(reports, "conclusions"),
        "figures": _totals(reports, "figures"),
        "answers": {answer: sum(row["answer"] == answer for row in questions) for answer in ANSWERS},
        "chance": _chance(counts),
        "runs": _runs(results),
        "fewest": FEWEST,
        "share_band": number(SHARE),
        "level_percent": number(100 * LEVEL),
        "near_percent": number(100 * NEAR),
        "confidence_percent": number(100 * CONFIDENCE),
        "limits": _limits(results),
        "questions_table": questions_table,
    }
    for page, name in [(None, "index"), *((page, page.name) for page in pages)]:
        template = "index" if page is None else "page" if page.concluded else "questions"
        values = facts | {"page": page}
        _write(
            folder / f"{name}.md",
            _rendered(environment.get_template(f"{template}.md.j2"), values, texts["words"]),
        )
    for plot in (part.plot for page in pages for view in page.views for part in view.parts if part.plot):
        write_text(folder / "figures" / plot["file"], plot["svg"])
    return folder / "index.md"


def check_findings(home: Path = HOME) -> None:
    """Raise UserError if docs/studies is not what would be written now, file by file."""
    committed = home.parent / FOLDER
    with TemporaryDirectory() as temporary:
        written = write_findings(home, Path(temporary) / "studies").parent
        names = {path.relative_to(at) for at in (written, committed) for path in at.rglob("*.*")}
        check_same(written, committed, names, "run `python -m studies findings` and commit what it writes")


def _rendered(template: Any, values: dict[str, Any], words: dict[str, str]) -> str:
    """A page with those of the ``words`` explained at its head that occur in it."""
    text = template.render(values | {"words": {}})
    used = {word: meaning for word, meaning in words.items() if re.search(rf"\b{word}\b", text)}
    return template.render(values | {"words": used})


def _write(path: Path, text: str) -> None:
    write_text(path, re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n")


def _pages(
    known: dict[str, Study],
    results: dict[tuple[str, str], StudyResults | None],
    claims: list[Row],
    questions: list[Row],
    concluded: dict[str, str],
) -> list[Page]:
    views = {}
    for name, study in sorted(known.items(), key=lambda item: _place(item[1])):
        parts = [_part(study, corpus, result) for corpus in CORPORA if (result := results[name, corpus])]
        counts = Counts([row for row in claims if row["study"] == name])
        asked = [row for row in questions if row["study"] == name]
        views[name] = View(study, parts, counts, asked, _headline(study, results))
    titles = REPORTS | {OWN_QUESTIONS: "questions that no report answers"}
    return [
        Page(
            report,
            title,
            concluded.get(report, ""),
            [view for view in views.values() if (view.study.about.report or OWN_QUESTIONS) == report],
            Counts([row for row in claims if row["report"] == report]),
        )
        for report, title in titles.items()
    ]


def _place(study: Study) -> list[int]:
    """Where a study stands among those of its report: by the numbers of its section."""
    return [int(digits) for digits in re.findall(r"\d+", study.about.section)]


def _headline(study: Study, results: dict[tuple[str, str], StudyResults | None]) -> str:
    """The first sentence on real text under the corrected protocol, with the text's name."""
    for corpus in ("wikitext", "sotu"):
        result = results[study.name, corpus]
        if result and (sentences := [*_facts(study, result, ["corrected"]), *result.sentences]):
            return f"{sentences[0]} ({CORPORA[corpus]})"
    return ""


def claims_table(rows: Sequence[Row]) -> str:
    """What a report says, with its figures and why it got its verdict."""
    columns = ["the report says", "published", "rerun", "corrected", "why", "claim"]
    cells = [
        [
            row["statement"],
            row["published"] or "-",
            row["rerun"] or "-",
            row["corrected_text"],
            row["reason"],
            f"`{row['id']}`",
        ]
        for row in rows
    ]
    return markdown(columns, cells)


def questions_table(rows: Sequence[Row]) -> str:
    """What we asked, with its figure and why it got its answer."""
    columns = ["question", "answer", "corrected", "why", "rule written", "id"]
    cells = [
        [
            row["statement"],
            row["answer"],
            row["corrected_text"],
            row["reason"],
            WRITTEN[row["written"]],
            f"`{row['id']}`",
        ]
        for row in rows
    ]
    return markdown(columns, cells)


def _totals(reports: Sequence[Page], kind: str) -> str:
    """A row per report, with the number of its conclusions or figures by verdict, and their sum."""
    of_report = {page.name: numbers(getattr(page.counts, kind)) for page in reports}
    rows = [[f"[{page.name}]({page.name}.md)", page.title, *of_report[page.name]] for page in reports]
    everything = [sum(column) for column in zip(*of_report.values())]
    return markdown(["report", "about", kind, *JUDGED], [*rows, ["all", "", *everything]])


def _chance(counts: Counts) -> dict[str, str]:
    """How many intervals decide verdicts, and how many of so many miss by chance alone."""
    intervals = sum(bool(row["ci_low"]) for row in [*counts.conclusions, *counts.figures])
    return {"intervals": str(intervals), "missed": number(round((1 - CONFIDENCE) * intervals))}


# The studies ----------------------------------------------------------------------------------------------


def _part(study: Study, corpus: str, results: StudyResults) -> Part:
    tables = [
        _table(figure, study.name, corpus)
        for _, figure in sorted(results.figures.items())
        if isinstance(figure, dict) and "rows" in figure and "title" in figure
    ]
    plot = plot_of(results.figures)
    drawn = plot and {
        "title": f"{plot.title}, {CORPORA[corpus]}",
        "file": f"{study.name}.{corpus}.svg",
        "svg": draw_plot(plot),
    }
    return Part(CORPORA[corpus], [*results.sentences, *_facts(study, results)], tables, drawn or None)


def _facts(
    study: Study, results: StudyResults, protocols: Sequence[Protocol] = ("published", "corrected")
) -> list[str]:
    """The sentences of study.yaml with their figures; one whose figures are not all there is left out."""
    out = []
    for protocol in protocols:
        sentences = study.about.facts.get(protocol, [])
        outcome = getattr(results, protocol)
        values = outcome.values if outcome else {}
        for sentence in sentences:
            names = re.findall(r"{([\w.]+)}", sentence)
            if all(name in values for name in names):
                out.append(re.sub(r"{([\w.]+)}", lambda match, of=values: cell(of[match[1]]), sentence))
    return out


def _table(figure: dict[str, Any], study: str, corpus: str) -> dict[str, Any]:
    rows = [[row.get(column) for column in figure["columns"]] for row in as_rows(figure)]
    elsewhere = f"{len(rows)} rows, in `studies/metrics/{study}.{corpus}.json`."
    shown = markdown(figure["columns"], rows) if len(rows) <= LONGEST else elsewhere
    folded = SHORT < len(rows) <= LONGEST
    return {"title": figure["title"], "note": figure.get("note", ""), "markdown": shown, "folded": folded}


# What was run ---------------------------------------------------------------------------------------------


def _runs(results: dict[tuple[str, str], StudyResults | None]) -> str:
    """A row per study and text."""
    rows = []
    for (study, corpus), result in results.items():
        if result:
            text = f"{result.text['source']}, `{result.text['sha256'][:12]}`"
            published = result.published.n if result.published else None
            rows.append(
                [f"`{study}`", CORPORA[corpus], published, result.corrected and result.corrected.n, text]
            )
    return markdown(["study", "corpus", "published runs", "corrected, random seeds", "text"], rows)


def _limits(results: dict[tuple[str, str], StudyResults | None]) -> dict[str, str]:
    seeds = sorted({result.corrected.n for result in results.values() if result and result.corrected})
    some = any(corpus == "wikitext" and result for (_, corpus), result in results.items())
    both = (
        "There are two corpora, both English. Figures that depend on the text are judged on WikiText-2, the "
        "published one; conclusions on both."
    )
    one = (
        "All results are on the State of the Union addresses. The reports used WikiText-2: figures that "
        "depend on the text may differ for that reason alone; conclusions should not."
    )
    return {"seeds": " or ".join(map(str, seeds)) or "no", "corpora": both if some else one}


def main(arguments: Sequence[str], home: Path = HOME) -> None:
    parser = argparse.ArgumentParser(prog="python -m studies findings", description="Write docs/studies.")
    parser.add_argument("--check", action="store_true", help="fail if the pages are not up to date")
    if parser.parse_args(arguments).check:
        check_findings(home)
        print("the findings are up to date")
    else:
        print(f"wrote {write_findings(home)}")
