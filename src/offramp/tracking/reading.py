"""Runs that were logged, for those who only read: straight from MLflow's database where it is a file.

MLflow takes two seconds to import and one more to open its database, longer than everything else that a
lineage does. Of the database only names of tables and columns are used here that it has had since it has one;
a test compares the answers with those of MLflow's own client. Other stores, such as servers, are read by that
client.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from offramp.tracking.address import SQLITE, experiment_name, store_uri
from offramp.tracking.store import StoreError, open_store

LOCKED_SECONDS = 20


class Runs(Protocol):
    """What a reader asks of a store."""

    def find(
        self, tags: Mapping[str, str | None], finished: bool | None = True, limit: int = 1
    ) -> Sequence[Any]:
        """The newest MLflow runs that carry ``tags`` (None: any value) and have, or have not, finished.

        With ``finished`` None: whatever their status is.
        """

    def get(self, run_id: str) -> Any:
        """The MLflow run of that id."""


@dataclass(frozen=True)
class RunInfo:
    run_id: str


@dataclass(frozen=True)
class RunData:
    tags: dict[str, str]
    params: dict[str, str]


@dataclass(frozen=True)
class LoggedRun:
    """A run, with the names that MLflow gives its parts."""

    info: RunInfo
    data: RunData


class Database:
    """The runs of one experiment in MLflow's SQLite database, or with None of all.

    StoreError where it cannot be read.
    """

    def __init__(self, connection: sqlite3.Connection, uri: str, experiment: str | None):
        self._connection, self._uri = connection, uri
        known = self._rows("SELECT experiment_id, name FROM experiments", [])
        self._searched = [number for number, name in known if experiment in (name, None)]
        if not self._searched:
            raise StoreError(f"{uri} has no experiment named {experiment} yet")

    def find(
        self, tags: Mapping[str, str | None], finished: bool | None = True, limit: int = 1
    ) -> Sequence[LoggedRun]:
        """See ``Runs``."""
        has_tag = "run_uuid IN (SELECT run_uuid FROM tags WHERE key = ? AND value {})"
        conditions = [
            f"experiment_id IN ({', '.join('?' * len(self._searched))})",
            "lifecycle_stage = 'active'",
        ]
        values = list(self._searched)
        if finished is not None:
            conditions.append(f"status {'=' if finished else '!='} 'FINISHED'")
        for key, value in tags.items():
            conditions.append(has_tag.format("IS NOT NULL" if value is None else "= ?"))
            values += [key] if value is None else [key, value]
        rows = self._rows(
            f"SELECT run_uuid FROM runs WHERE {' AND '.join(conditions)} "
            "ORDER BY start_time DESC, run_uuid LIMIT ?",
            [*values, limit],
        )
        return [self.get(run_id) for (run_id,) in rows]

    def get(self, run_id: str) -> LoggedRun:
        """See ``Runs``."""
        tags, params = (
            dict(self._rows(f"SELECT key, value FROM {table} WHERE run_uuid = ?", [run_id]))
            for table in ("tags", "params")
        )
        return LoggedRun(RunInfo(run_id), RunData(tags, params))

    def _rows(self, query: str, values: Sequence[str | int]) -> list[Any]:
        try:
            return self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise StoreError(f"{self._uri}: {error}") from error


@contextmanager
def read_runs(root: Path | None) -> Iterator[Runs]:
    """The runs of the project at ``root``, or without a project those of all that share the store of the
    environment; nothing is created. StoreError where there is nothing to read."""
    uri = store_uri(root or Path.cwd())
    if not uri.startswith(SQLITE):
        with open_store(root or Path.cwd(), write=False, everywhere=root is None) as store:
            yield store
        return
    path = Path(uri.removeprefix(SQLITE).partition("?")[0]).absolute()
    if not path.is_file():
        raise StoreError(f"there is no {path} yet")
    try:
        connection = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=LOCKED_SECONDS)
    except sqlite3.Error as error:
        raise StoreError(f"{uri}: {error}") from error
    with closing(connection):
        yield Database(connection, uri, experiment_name(root) if root else None)
