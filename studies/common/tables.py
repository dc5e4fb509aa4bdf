"""Tables that studies hand to the findings, and their means over random seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

Values = dict[str, float | None]
"""Values by key; None for what is not defined."""

Table = list[dict[str, Any]]
"""A table as rows of columns by name, the same in every row."""


def of_protocol(tables: Mapping[str, Table], protocol: str) -> dict[str, Table]:
    """The tables under the names that the findings know: <name>.<protocol>."""
    return {f"{name}.{protocol}": rows for name, rows in tables.items()}


def mean_tables(by_seed: Sequence[Mapping[str, Table]]) -> dict[str, Table]:
    """Tables of every random seed as one each, whose last column is the mean over them.

    The other columns tell rows apart; a row that some seed has not is left out.
    """
    return {name: _mean([tables[name] for tables in by_seed]) for name in by_seed[0]}


def _mean(tables: Sequence[Table]) -> Table:
    value = list(tables[0][0])[-1] if tables[0] else ""
    known = [{tuple(row[name] for name in row if name != value): row for row in rows} for rows in tables]
    return [
        {**row, value: float(np.mean([rows[key][value] for rows in known]))}
        for key, row in known[0].items()
        if all(key in rows for rows in known)
    ]
