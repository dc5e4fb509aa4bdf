"""All DVC experiments of a project: what was changed for each, and the few numbers to compare."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from offramp.errors import UserError
from offramp.params import read_params
from offramp.results.headline import Headline
from offramp.tracking.recorded import flatten

WORKSPACE = "workspace"
COLUMNS = {
    "ppl": ("ppl", "{:.3f}"),
    "ppl_increase": ("rise", "{:+.2%}"),
    "shallow_ratio": ("early", "{:.1%}"),
    "flop_saving": ("FLOPs saved", "{:.1%}"),
    "wall_saving": ("time saved", "{:.1%}"),
    "attained": ("attained", "{:.2f}"),
    "agreement": ("agreement", "{:.3f}"),
}
"""Numbers of the headline, with their names in the table and how they are written."""


TEXT = ("corpus.", "tokenizer.", "window")
"""Beginnings of parameters that change which tokens a perplexity is of."""


@dataclass
class Experiment:
    """The workspace, a commit or a DVC experiment."""

    name: str
    state: str
    """What DVC says of an experiment that is not done: Queued, Running, Failed; "" for others."""
    changed: dict[str, Any] = field(default_factory=dict)
    """Parameters that differ from those of the commit it started from; of a commit, from those of HEAD."""
    numbers: dict[str, float] = field(default_factory=dict)
    """Of the headline, those there are."""


def experiments(root: Path) -> list[Experiment]:
    """The workspace, then every commit that experiments started from, each followed by them.

    UserError outside git or before the first commit.
    """
    from dvc.api import exp_show
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from scmrepo.exceptions import SCMError

    try:
        with Repo(str(root)) as repo:
            bases = list(repo.experiments.ls(all_commits=True))
        rows = exp_show(str(root), revs=["HEAD", *bases])
    except (DvcException, SCMError) as error:
        raise UserError(
            f"DVC cannot list experiments: {error}; they need a git repository with a commit"
        ) from None
    keys = set(flatten(read_params(root / "params.yaml").model_dump(mode="json")))
    return list(from_rows(rows, keys))


def comparison(compared: Iterable[Experiment]) -> Table:
    """One line for each of them, and a warning where they are not all of the same tokens."""
    compared = list(compared)
    table = Table(box=None, pad_edge=False, header_style="bold", caption_justify="left")
    if any(key.startswith(TEXT) for one in compared for key in one.changed):
        table.caption = "Perplexities of different text or tokens do not compare; rises do."
    table.add_column("experiment", no_wrap=True)
    table.add_column("changed")
    for title, _ in COLUMNS.values():
        table.add_column(title, justify="right")
    for one in compared:
        changed = ", ".join(f"{key}={value}" for key, value in one.changed.items())
        cells = [
            form.format(one.numbers[key]) if key in one.numbers else "" for key, (_, form) in COLUMNS.items()
        ]
        told = f"{changed} ({one.state})" if one.state else changed
        table.add_row(escape(one.name), escape(told), *cells)
    return table


def from_rows(rows: list[dict[str, Any]], keys: set[str]) -> Iterator[Experiment]:
    """The experiments that are rows of DVC's, in its order; ``keys`` are the names of parameters."""
    head = next((row for row in rows[1:] if row["typ"] == "baseline"), rows[0])
    base = head
    for row in rows:
        if row["typ"] == "baseline":
            base = head if row["rev"] == WORKSPACE else row
        origin = head if row["typ"] == "baseline" else base
        both = sorted(keys & row.keys() & origin.keys())
        changed = {key: row[key] for key in both if row[key] != origin[key]}
        state = row["State"] or ""
        yield Experiment(
            row["Experiment"] or row["rev"], "" if state == "Success" else state, changed, _numbers(row)
        )


def _numbers(row: dict[str, Any]) -> dict[str, float]:
    """DVC puts the file before a name that other metrics or parameters have too, as those of old commits."""
    values = {name: row.get(f"{Headline.path}:{name}", row.get(name)) for name in Headline.model_fields}
    return {name: value for name, value in values.items() if isinstance(value, (int, float))}
