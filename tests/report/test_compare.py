"""The table of experiments: each beside the commit it began from, and commits beside the newest."""

from __future__ import annotations

from offramp.report.compare import comparison, from_rows

KEYS = {"threshold", "corpus.source"}


def row(rev, typ, ppl, name=None, threshold=0.8, source="sotu"):
    about = {"rev": rev, "typ": typ, "Experiment": name, "State": "Success" if name else None}
    return about | {"threshold": threshold, "corpus.source": source, "ppl": ppl}


def test_an_experiment_differs_from_its_commit_and_an_older_commit_from_the_newest():
    rows = [
        row("workspace", "baseline", 20.9, source="files"),
        row("main", "baseline", 20.9, source="files"),
        row("1a2b3c4", "branch_commit", 21.5, "lower", threshold=0.7, source="files"),
        row("73492ba", "baseline", 25.0),
        row("5d6e7f8", "branch_commit", 25.4, "older", threshold=0.7),
    ]
    assert {one.name: one.changed for one in from_rows(rows, KEYS)} == {
        "workspace": {},
        "main": {},
        "lower": {"threshold": 0.7},
        "73492ba": {"corpus.source": "sotu"},
        "older": {"threshold": 0.7},
    }


def test_that_perplexities_of_other_text_do_not_compare_is_said_where_it_matters():
    both = [row("main", "baseline", 25.0), row("1a2b3c4", "branch_commit", 20.9, "mine", source="files")]
    assert "do not compare" in str(comparison(from_rows(both, KEYS)).caption)
    alike = [row("main", "baseline", 25.0), row("1a2b3c4", "branch_commit", 25.4, "lower", threshold=0.7)]
    assert comparison(from_rows(alike, KEYS)).caption is None
