"""Runs that stages opened while they were running: how they are known again, completed and closed.

A live run carries the key of its training (``KEY``), under which an interrupted one is taken up. When it has
ended it also carries the digests of what it made, by which ``track`` knows it. A small file says which live
runs were opened and not closed (the store was down at the end, the machine went off); the next ``track``
gives them their status.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from offramp.artifacts.files import write_json
from offramp.tracking.address import store_root
from offramp.tracking.recorded import MADE
from offramp.tracking.series import Point
from offramp.tracking.store import ROLE, STAGE, RunRecord, Store, StoreError, user_name

KEY = "offramp.snapshot_key"
ADOPTED = "dvc.stage."
"""Beginning of the tag that ties a run to an entry of dvc.lock."""
SAME = 1e-12
"""Relative difference that a database may make in a number."""
ENDING_SECONDS = 15
"""How long ``track`` waits for a live run that is just being closed."""

Logged = dict[tuple[str, int], float]
"""What a run holds: values by key and step."""


def same(one: float, other: float) -> bool:
    """Whether two values are one, but for what a database may have rounded."""
    return math.isclose(one, other, rel_tol=SAME)


def logged_points(store: Store, run: Any) -> Logged:
    """All points of a run, but for those of the machine that MLflow took itself."""
    points: Logged = {}
    for key in run.data.metrics:
        if not key.startswith("system/"):
            points |= {(key, step): value for value, step in store.history(run.info.run_id, key)}
    return points


def live_run_of(store: Store, record: RunRecord) -> Any | None:
    """The live run that made what ``record`` tells of, if no entry of dvc.lock has it already.

    ``record`` loses the points that the run holds. A run that holds another value than the files is removed:
    the files are the truth, and MLflow cannot take a value back.
    """
    made = {tag: None for tag in record.tags if tag.startswith(MADE)}
    if not made:
        return None
    known = {ROLE: STAGE, "offramp.stage": record.tags["offramp.stage"], KEY: None, **made}
    for run in store.find(known, finished=None, limit=20):
        if adopted(run):
            continue
        logged = logged_points(store, run)
        if _agrees(logged, record.points):
            record.points = [point for point in record.points if (point[0], point[2]) not in logged]
            return run
        store.delete(run.info.run_id)
    return None


def adopted(run: Any | None) -> bool:
    """Whether a run is the run of an entry of dvc.lock."""
    return run is not None and any(tag.startswith(ADOPTED) for tag in run.data.tags)


def _agrees(logged: Logged, points: list[Point]) -> bool:
    """Whether a run holds nothing of the curves but what is among ``points``."""
    truth = {(key, step): value for key, value, step in points}
    curves = {key for key, _ in truth}
    return all(
        point in truth and same(value, truth[point]) for point, value in logged.items() if point[0] in curves
    )


def lock_of(key: str) -> FileLock:
    """Held for as long as the live run of that key is written, by the process that writes it."""
    return FileLock(Path(tempfile.gettempdir()) / f"offramp-{user_name()}-live-{key}.lock")


class Unclosed:
    """The note that a live run was opened, until it is closed: it lies in the project's .resume."""

    def __init__(self, root: Path, key: str):
        self.file = store_root(root) / ".resume" / f"{key}.live.json"

    def write(self, uri: str, run_id: str, **end: Any) -> None:
        """``end`` is what the run still has to be told: its status, when it ended (ms), and tags."""
        write_json(self.file, {"store": _name_of(uri), "run": run_id, **end})

    def remove(self) -> None:
        self.file.unlink(missing_ok=True)


def close_left_runs(store: Store, root: Path) -> None:
    """Close the runs of this store that were opened and not closed, and whose process is gone."""
    for file in sorted((store_root(root) / ".resume").glob("*.live.json")):
        with suppress(OSError, ValueError, KeyError, Timeout):
            note = json.loads(file.read_text(encoding="utf-8"))
            if note["store"] != _name_of(store.uri):
                continue
            key = file.name.removesuffix(".live.json")
            with lock_of(key).acquire(timeout=ENDING_SECONDS if "status" in note else 0):
                if file.is_file():  # else the process has closed it meanwhile
                    _close(store, note)
                    Unclosed(root, key).remove()


def _close(store: Store, note: dict[str, Any]) -> None:
    """A run whose end nobody has noted was killed together with the process that would have."""
    with suppress(StoreError):  # deleted by the user: there is nothing to close
        store.set_tags(note["run"], note.get("tags", {}))
        store.end(note["run"], note.get("status", "KILLED"), note.get("ended"))


def _name_of(uri: str) -> str:
    """A store without its address, which may hold a password."""
    return hashlib.sha256(uri.encode()).hexdigest()[:16]
