"""The findings as a short paper, docs/findings.md and its figures, and as a page, docs/findings.html, from all results.

    python -m studies.findings.findings

Reads metrics/claims.csv and metrics/studies/*.json; same results, same bytes. A study may have no results yet.
"""

from __future__ import annotations

import csv
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from offramp.artifacts.files import write_text
from offramp.errors import UserError
from offramp.report.figures import Figure
from studies.findings.facts import FACTS
from studies.findings.page import Claim, Part, Study, studies_page
from studies.findings.plots import as_rows, draw_plot, plot_of
from studies.ledger.figures import CORPORA, number, read_result
from studies.ledger.ledger import CLAIMS, COLUMNS, LEDGER, read_claims
from studies.ledger.verdict import FEWEST, LEVEL, SHARE, VERDICTS

TEMPLATE = Path(__file__).with_name("findings.md.j2")
PAGE, FIGURES, HTML = Path("docs/findings.md"), Path("docs/figures"), Path("docs/findings.html")

STUDIES = {
    "exit_signals": "Which signal should decide that a token leaves?",
    "blockwise_gap": "Why does a block-wise model lose quality when tokens leave?",
    "exit_labels": "Which label should an exit classifier learn?",
    "loss_prediction": "Can the loss of a token be predicted from its hidden state?",
    "inference_confidence": "Which confidence, known before the token, tracks the loss?",
    "low_rank_readout": "Can a low-rank readout stand in for the full one?",
    "hierarchy_and_lagged_caches": "What explains the gain of a hierarchy of recurrent blocks?",
    "segment_memory": "Does a compressive memory help that cannot see the future?",
    "iterated_refinement": "Does refining a state in several passes help at equal updates and equal compute?",
    "layer_supervision": "Does it help to supervise every layer?",
    "adding_a_layer": "Does adding a layer destroy a trained model?",
    "greedy_growth": "Does growing layer by layer on frozen layers collapse?",
    "progressive_growth": "Does growing layer by layer with all layers learning collapse?",
    "layer_contribution": "What does each layer contribute, to easy and to hard tokens?",
    "early_exit_feasibility": "Is leaving after the first layer safe?",
    "confidence_routing": "Does routing by confidence beat both fixed depths?",
    "routing_losses": "Which training loss suits a routed model?",
    "context_inputs": "Should every layer of a recurrent context see the token, and is its effective rank the reason?",
    "parallel_contexts": "Can contexts made in parallel stand in for the recurrence?",
    "context_scaling": "Does a recurrence without attention follow a power law of text, and keep up with a transformer?",
    "selective_output": "What is a gate worth that lets a model decline to speak?",
    "reversal": 'Does a model that learnt "A is B" know "B is A"?',
}
SEEDS = {
    "003": ("labels for exit classifiers", ("exit_labels",)),
    "004": (
        "predicting the loss of a token",
        ("loss_prediction", "inference_confidence", "low_rank_readout"),
    ),
    "001": (
        "recurrence, memory, supervision, growth and exits of character-level models",
        (
            "hierarchy_and_lagged_caches",
            "segment_memory",
            "iterated_refinement",
            "layer_supervision",
            "adding_a_layer",
            "greedy_growth",
            "progressive_growth",
            "layer_contribution",
            "early_exit_feasibility",
            "confidence_routing",
            "routing_losses",
        ),
    ),
    "002": (
        "a recurrent context trained apart from what reads it",
        ("context_inputs", "parallel_contexts", "context_scaling"),
    ),
    "000": ("a model that may decline to speak", ("selective_output", "reversal")),
}
"""In the order of the page: what it is about comes first."""
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

MEASURES = {
    "final_ppl": "perplexity",
    "random_ppl": "at random",
    "accuracy": "accuracy",
    "shallow_ratio": "leaving early",
    "layer_saving": "layers saved",
    "executed_layer_saving": "layers skipped",
    "flop_saving": "FLOPs saved",
}
"""Columns of the table of labels."""

LONGEST = 40
"""Rows of a table above which the findings point to the result file."""

Row = dict[str, str]


def write_findings(root: Path = Path(".")) -> Path:
    """Write docs/findings.md, docs/findings.html and docs/figures/<study>.<corpus>.svg under ``root``.

    Raises UserError if the ledger is missing or was written for other claims.
    """
    from jinja2 import Environment, StrictUndefined

    views = {name: _view(root, name, asks) for name, asks in STUDIES.items()}
    environment = Environment(
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    rows = _ledger(root)
    for name, view in views.items():
        own = [row for row in rows if row["study"] == name]
        view |= {"claims": len(own), "counts_text": _counts(own) if own else ""}
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        views=views,
        seeds=_seeds(rows, views),
        **_protocols(views),
        fewest=FEWEST,
        share_band=number(SHARE),
        level_percent=number(100 * LEVEL),
    )
    for view in views.values():
        for part in view["parts"]:
            if part["plot"]:
                write_text(root / FIGURES / part["plot"]["file"], part["plot"]["svg"])
    write_text(root / PAGE, re.sub(r"\n{3,}", "\n\n", page))
    write_text(root / HTML, studies_page(_parts(rows, views)))
    return root / PAGE


# The ledger ---------------------------------------------------------------------------------------------------------


def _ledger(root: Path) -> list[Row]:
    path = root / LEDGER
    if not path.exists():
        raise UserError(f"{LEDGER} is missing; run python -m studies.ledger.ledger")
    with path.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        rows, columns = list(reader), tuple(reader.fieldnames or ())
    claims = {claim.id: claim for claim in read_claims()}
    if columns != COLUMNS or [row["id"] for row in rows] != list(claims):
        raise UserError(
            f"{LEDGER} was not written from {CLAIMS.name}/*.yaml as they are; run python -m studies.ledger.ledger"
        )
    return [
        row
        | {
            "conclusion": claims[row["id"]].conclusion,
            "study": claims[row["id"]].study,
            "corrected_text": _with_interval(row),
        }
        for row in rows
    ]


def _with_interval(row: Row) -> str:
    return f"{row['corrected']} [{row['ci_low']}, {row['ci_high']}]" if row["ci_low"] else row["corrected"]


def _seeds(rows: list[Row], views: dict[str, Any]) -> list[dict[str, Any]]:
    out = []
    for seed, (title, studies) in SEEDS.items():
        own = [row for row in rows if row["seed"] == seed]
        conclusions = [row for row in own if row["conclusion"]]
        found = {flaw: None for name in studies for part in views[name]["parts"] for flaw in part["flaws"]}
        groups = [
            {
                "heading": heading,
                "conclusions": [row for row in conclusions if row["verdict"] == verdict],
                "figures": [
                    _escaped(row) for row in own if row["verdict"] == verdict and not row["conclusion"]
                ],
            }
            for verdict, heading in HEADINGS.items()
            if any(row["verdict"] == verdict for row in own)
        ]
        out.append(
            {
                "name": f"seed {seed}",
                "title": title,
                "studies": studies,
                "total": len(own),
                "groups": groups,
                "counts_text": _counts(own),
                "conclusions": len(conclusions),
                "conclusion_counts_text": _counts(conclusions),
                "flaws": _one_per_code(list(found)),
            }
        )
    return out


def _parts(rows: list[Row], views: dict[str, Any]) -> list[Part]:
    """What the HTML page shows: the studies that belong to no seed, then those of each seed."""
    of_seeds = [name for _, studies in SEEDS.values() for name in studies]
    rest = [_study(view, []) for name, view in views.items() if name not in of_seeds]
    parts = [Part("Who decides that a token may leave early?", "", rest)]
    for seed, (title, studies) in SEEDS.items():
        own = [row for row in rows if row["seed"] == seed]
        shown = [_study(views[name], [row for row in own if row["study"] == name]) for name in studies]
        parts.append(Part(f"Seed {seed}: {title}", _counts(own), shown))
    return parts


def _study(view: dict[str, Any], rows: list[Row]) -> Study:
    plots = [part["plot"] for part in view["parts"] if part["plot"]]
    figures = [
        Figure(Path(plot["file"]).stem.replace(".", "-"), plot["title"], plot["note"], plot["svg"])
        for plot in plots
    ]
    claims = [
        Claim(
            *(
                row[name]
                for name in ("id", "statement", "published", "rerun", "corrected_text", "verdict", "reason")
            )
        )
        for row in rows
    ]
    several = len(view["parts"]) > 1
    sentences = [
        f"{part['corpus']}: {text}" if several else text
        for part in view["parts"]
        for text in part["sentences"]
    ]
    return Study(view["name"], view["asks"], sentences, figures, claims)


def _counts(rows: list[Row]) -> str:
    """How many hold, fail, are artefacts or inconclusive; in words what is none."""
    counts = Counter(row["verdict"] for row in rows)
    parts = [f"{counts[verdict] or 'none'} {COUNTED[verdict][counts[verdict] != 1]}" for verdict in HEADINGS]
    assert set(HEADINGS) == set(VERDICTS)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def _one_per_code(flaws: list[str]) -> list[str]:
    """Flaws in order of their codes (I1, J2, ...), one wording of each."""
    by_code: dict[str, str] = {}
    for flaw in flaws:
        by_code.setdefault(flaw.split()[0], flaw)
    return sorted(by_code.values(), key=lambda flaw: (flaw[0], int(re.sub(r"\D", "", flaw.split()[0]) or 0)))


# The studies --------------------------------------------------------------------------------------------------------


def _view(root: Path, study: str, asks: str) -> dict[str, Any]:
    results = {corpus: read_result(root, study, corpus) for corpus in CORPORA}
    return {
        "name": study,
        "asks": asks,
        "parts": [_part(study, corpus, result) for corpus, result in results.items() if result],
    }


def _part(study: str, corpus: str, result: dict[str, Any]) -> dict[str, Any]:
    tables = [
        _table(figure, study, corpus)
        for _, figure in sorted(result.get("figures", {}).items())
        if isinstance(figure, dict) and "rows" in figure
    ]
    if study == "exit_labels":
        tables += _label_table(result)
    plot = plot_of(result)
    drawn = plot and {
        "title": f"{plot.title}, {CORPORA[corpus]}",
        "file": f"{study}.{corpus}.svg",
        "note": plot.note,
        "svg": draw_plot(plot),
    }
    sentences = [*result.get("sentences", []), *_facts(study, result)]
    return {
        "corpus": CORPORA[corpus],
        "sentences": sentences,
        "tables": tables,
        "plot": drawn,
        "flaws": result.get("flaws", []),
        "result": result,
    }


def _facts(study: str, result: dict[str, Any]) -> list[str]:
    out = []
    for protocol, sentence in FACTS.get(study, []):
        values = result.get(protocol, {}).get("values", {})
        names = re.findall(r"{([\w.]+)}", sentence)
        if all(name in values for name in names):
            out.append(re.sub(r"{([\w.]+)}", lambda found, values=values: cell(values[found[1]]), sentence))
    return out


def _label_table(result: dict[str, Any]) -> list[dict[str, str]]:
    values = result.get("corrected", {}).get("values", {})
    arms = [key.removeprefix("final_ppl.") for key in values if key.startswith("final_ppl.")]
    rows = [[arm, *(values.get(f"{measure}.{arm}") for measure in MEASURES)] for arm in sorted(arms)]
    note = "At random: as many tokens leave, drawn at random. Intervals over seeds."
    return (
        [
            {
                "title": "The corrected protocol, by label",
                "note": note,
                "markdown": _markdown(["label", *MEASURES.values()], rows),
            }
        ]
        if rows
        else []
    )


def _table(figure: dict[str, Any], study: str, corpus: str) -> dict[str, str]:
    rows = [[row.get(column) for column in figure["columns"]] for row in as_rows(figure)]
    shown = (
        _markdown(figure["columns"], rows)
        if len(rows) <= LONGEST
        else (f"{len(rows)} rows, in `metrics/studies/{study}.{corpus}.json`.")
    )
    return {"title": figure.get("title", ""), "note": figure.get("note", ""), "markdown": shown}


def _markdown(columns: list[str], rows: list[list[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *([cell(value) for value in row] for row in rows)]
    return "\n".join(
        "| " + " | ".join(str(entry).replace("|", "\\|") for entry in line) + " |" for line in lines
    )


def cell(value: Any) -> str:
    """A table's cell: a number, {value, low, high} or [value, low, high], an interval [low, high], or text."""
    if isinstance(value, dict):
        value = [
            value["value"],
            *(bound for bound in (value.get("low"), value.get("high")) if bound is not None),
        ]
    if isinstance(value, list | tuple):
        *first, low, high = value if len(value) > 1 else [*value, None, None]
        return " ".join(
            [*map(cell, first), *([f"[{number(low)}, {number(high)}]"] if low is not None else [])]
        )
    if value is None:
        return "-"
    return number(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _escaped(row: Row) -> Row:
    return {
        name: value.replace("|", "\\|") if isinstance(value, str) else value for name, value in row.items()
    }


def _protocols(views: dict[str, Any]) -> dict[str, Any]:
    """What was run: a row per study and corpus, what is missing, and the sentences of the limits."""
    runs = []
    for view in views.values():
        for part in view["parts"]:
            result = part["result"]
            text, corrected = result.get("text", {}), result.get("corrected", {})
            digest = f", `{text['sha256'][:12]}`" if text.get("sha256") else ""
            runs.append(
                {
                    "study": view["name"],
                    "asks": view["asks"],
                    "corpus": part["corpus"],
                    "published": result.get("published", {}).get("n", "-"),
                    "corrected": corrected.get("n", "-"),
                    "interval": corrected.get("interval", "-"),
                    "text": f"{text.get('source', '-')}{digest}",
                }
            )
    return {
        "runs": runs,
        "missing": [f"`{name}`" for name, view in views.items() if not view["parts"]],
        "published_runs": _span({row["published"] for row in runs}, "once"),
        "seed_counts": _span({row["corrected"] for row in runs}, "no"),
        "corpora_text": _corpora_text(views),
    }


def _span(counts: set[Any], none: str) -> str:
    known = sorted(count for count in counts if isinstance(count, int))
    if not known:
        return none
    if none == "once":
        return "once" if known == [1] else f"{known[0]} to {known[-1]} times"
    return str(known[0]) if len(known) == 1 else f"{known[0]} to {known[-1]}"


def _corpora_text(views: dict[str, Any]) -> str:
    seen = {part["corpus"] for view in views.values() for part in view["parts"]}
    if CORPORA["wikitext"] in seen:
        return (
            "There are two corpora, both English. Figures that depend on the text are judged on WikiText-2, the "
            "published one; conclusions on both."
        )
    return (
        "All results are on the State of the Union addresses. The seeds used WikiText-2: figures that depend on "
        "the text may differ for that reason alone, conclusions should not."
    )


def main() -> None:
    try:
        print(f"wrote {write_findings()}")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
