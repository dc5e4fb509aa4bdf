"""The findings: docs/studies, a page per report and an index with the conclusions first.

    python -m studies findings

Reads claims.csv, the results below metrics/ and every study.yaml; same results, same bytes. A study may have
no results yet. Figures that merely describe are in claims.csv alone.
"""

from __future__ import annotations

import csv
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offramp.artifacts.files import write_text
from offramp.errors import UserError
from studies.common.results import Interval, StudyResults, number, read_results
from studies.common.study import HOME, REPORTS, Protocol, Study, studies
from studies.findings.plots import as_rows, draw_plot, plot_of
from studies.ledger.figures import CORPORA
from studies.ledger.ledger import COLUMNS, read_claims
from studies.ledger.verdict import FEWEST, LEVEL, SHARE, VERDICTS

TEMPLATES = Path(__file__).parent
FOLDER = Path("docs/studies")
"""Relative to the root of the repository, the parent of the folder of all studies."""

OWN_QUESTIONS = "own-questions"
"""The page of studies that test no report."""

HEADINGS = {
    "holds": "What holds",
    "artefact": "Artefacts: reproduced, but only through a flaw",
    "fails": "What fails",
    "inconclusive": "What remains open",
}
COUNTED = {
    "holds": ("holds", "hold"),
    "artefact": ("is an artefact", "are artefacts"),
    "fails": ("fails", "fail"),
    "inconclusive": ("is inconclusive", "are inconclusive"),
}

LONGEST = 40
"""Rows of a table above which a page points to the result file."""

Row = dict[str, Any]
"""A row of claims.csv, with the study that it stands with and whether it is a conclusion."""


@dataclass(frozen=True)
class Part:
    """What a study measured on one text, as a page shows it."""

    corpus: str
    sentences: list[str]
    tables: list[dict[str, str]]
    plot: dict[str, str] | None


@dataclass(frozen=True)
class View:
    """A study as a page shows it."""

    study: Study
    parts: list[Part]
    conclusions: list[Row]

    headline: str
    """The sentence that stands for the study in the index; empty where nothing has been run."""

    @property
    def counts(self) -> str:
        return counts(self.conclusions)


@dataclass(frozen=True)
class Page:
    """A report and its studies, or the questions of our own (``claims`` is empty)."""

    name: str
    title: str
    views: list[View]
    claims: list[Row]

    @property
    def conclusions(self) -> list[Row]:
        return [row for row in self.claims if row["conclusion"]]

    @property
    def counts(self) -> str:
        return counts(self.conclusions)

    @property
    def figures(self) -> int:
        """Claims that merely describe."""
        return len(self.claims) - len(self.conclusions)

    @property
    def figure_counts(self) -> str:
        return counts([row for row in self.claims if not row["conclusion"]])

    @property
    def flaws(self) -> list[str]:
        """Every flaw of the published protocols once."""
        return list(dict.fromkeys(flaw for view in self.views for flaw in view.study.about.flaws))

    def by_verdict(self) -> dict[str, list[Row]]:
        """Conclusions by heading."""
        groups = {
            heading: [row for row in self.conclusions if row["verdict"] == verdict]
            for verdict, heading in HEADINGS.items()
        }
        return {heading: rows for heading, rows in groups.items() if rows}

    def number(self, verdict: str) -> int:
        """Conclusions of this verdict."""
        return sum(row["verdict"] == verdict for row in self.conclusions)


def write_findings(home: Path = HOME) -> Path:
    """Write docs/studies anew, beside ``home``, the folder of all studies; pages of earlier runs go.

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
    known = studies(home)
    results = {(name, corpus): read_results(home, name, corpus) for name in known for corpus in CORPORA}
    pages = _pages(known, results, read_ledger(home))
    folder = home.parent / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    facts = {
        "pages": pages,
        "verdicts": VERDICTS,
        "runs": _runs(results),
        "fewest": FEWEST,
        "share_band": number(SHARE),
        "level_percent": number(100 * LEVEL),
        "limits": _limits(results),
    }
    _write(folder / "index.md", environment.get_template("index.md.j2").render(**facts))
    for page in pages:
        _write(folder / f"{page.name}.md", environment.get_template("page.md.j2").render(page=page))
        for plot in (part.plot for view in page.views for part in view.parts if part.plot):
            write_text(folder / "figures" / plot["file"], plot["svg"])
    return folder / "index.md"


def _write(path: Path, text: str) -> None:
    write_text(path, re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n")


def _pages(
    known: dict[str, Study], results: dict[tuple[str, str], StudyResults | None], rows: list[Row]
) -> list[Page]:
    views = {}
    for name, study in sorted(known.items(), key=lambda item: _place(item[1])):
        parts = [_part(study, corpus, result) for corpus in CORPORA if (result := results[name, corpus])]
        conclusions = [row for row in rows if row["study"] == name and row["conclusion"]]
        views[name] = View(study, parts, conclusions, _headline(study, results))
    titles = {OWN_QUESTIONS: "questions that no report asked"} | REPORTS
    return [
        Page(
            report,
            title,
            [view for view in views.values() if (view.study.about.report or OWN_QUESTIONS) == report],
            [row for row in rows if row["report"] == report],
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


# The ledger -----------------------------------------------------------------------------------------------


def read_ledger(home: Path) -> list[Row]:
    """The rows of claims.csv. UserError if it is missing or was not written from the claims as they are."""
    path, remedy = home / "claims.csv", "run `python -m studies ledger`"
    if not path.exists():
        raise UserError(f"{path} is missing; {remedy}")
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        rows, columns = list(reader), tuple(reader.fieldnames or ())
    claims = {claim.id: claim for claim in read_claims(home)}
    if columns != COLUMNS or [row["id"] for row in rows] != list(claims):
        raise UserError(f"{path} was not written from studies/*/claims.yaml as they are; {remedy}")
    out: list[Row] = []
    for row in rows:
        claim = claims[row["id"]]
        interval = f" [{row['ci_low']}, {row['ci_high']}]" if row["ci_low"] else ""
        more = {"corrected_text": f"{row['corrected']}{interval}"}
        out.append({**row, **more, "conclusion": claim.conclusion, "study": claim.study})
    return out


def counts(rows: Sequence[Row]) -> str:
    """How many hold, fail, are artefacts or inconclusive; in words what is none."""
    number_of = Counter(row["verdict"] for row in rows)
    parts = [
        f"{number_of[verdict] or 'none'} {COUNTED[verdict][number_of[verdict] != 1]}" for verdict in HEADINGS
    ]
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


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


def _table(figure: dict[str, Any], study: str, corpus: str) -> dict[str, str]:
    rows = [[row.get(column) for column in figure["columns"]] for row in as_rows(figure)]
    elsewhere = f"{len(rows)} rows, in `studies/metrics/{study}.{corpus}.json`."
    shown = markdown(figure["columns"], rows) if len(rows) <= LONGEST else elsewhere
    return {"title": figure["title"], "note": figure.get("note", ""), "markdown": shown}


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table; every cell as ``cell`` writes it."""
    lines = [list(columns), ["---"] * len(columns), *([cell(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(entry.replace("|", "\\|") for entry in line) + " |" for line in lines)


def cell(value: Any) -> str:
    """A table's cell: a number, an Interval or [value, low, high], an interval [low, high], or text."""
    if isinstance(value, Interval):
        value = [value.value, value.low, value.high]
    if isinstance(value, dict):
        bounds = (value.get("low"), value.get("high"))
        value = [value["value"], *(bound for bound in bounds if bound is not None)]
    if isinstance(value, list | tuple):
        *first, low, high = value if len(value) > 1 else [*value, None, None]
        interval = [f"[{number(low)}, {number(high)}]"] if low is not None else []
        return " ".join([*map(cell, first), *interval])
    if value is None:
        return "-"
    return number(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


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


def main(arguments: Sequence[str]) -> None:
    print(f"wrote {write_findings()}")
