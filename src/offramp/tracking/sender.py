"""The process that talks to MLflow while a stage runs: it reads what the stage tells, and sends batches.

    python -m offramp.tracking.sender

Its standard input is the stage's pipe (``offramp.tracking.live``), one JSON object a line. The first says
which run to open; then come rows of learning curves, rates of steps and, if the stage could say so itself,
how it ended. Where the pipe closes without that, the stage was killed.

A value that was sent stays as it is: MLflow knows no correction. So a resumed training skips what its run
holds already; and if it comes to another value than the interrupted one had (a GPU need not add in the same
order), the run is begun anew and the old one removed.
"""

from __future__ import annotations

import json
import logging
import math
import os
import queue
import signal
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import Timeout

from offramp.results.exits import FitEpoch
from offramp.results.pretraining import LearningCurve
from offramp.tracking.address import store_uri, without_secrets
from offramp.tracking.live_runs import (
    KEY,
    Logged,
    Unclosed,
    adopted,
    lock_of,
    logged_points,
    same,
)
from offramp.tracking.recorded import flatten
from offramp.tracking.series import Point, curve_points, metric_key
from offramp.tracking.store import (
    ROLE,
    STAGE,
    RunRecord,
    Store,
    StoreError,
    open_store,
)
from offramp.tracking.tracking import common_tags, describe_experiment

TABLES: dict[str, type[LearningCurve] | type[FitEpoch]] = {
    "pretrain": LearningCurve,
    "train_exits": FitEpoch,
}
"""The learning curve that a stage tells of."""
LOCK_SECONDS = 10
"""How long to wait for the process that wrote this run before: it may be closing it."""


def main() -> None:
    for name in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(name, signal.SIG_IGN)  # the end is the end of the pipe
    logging.disable()  # MLflow's own messages have whole addresses in them, passwords too
    messages: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(messages,), daemon=True).start()
    about = messages.get()
    if about is None:
        return
    try:
        with lock_of(about["key"]).acquire(timeout=LOCK_SECONDS):
            Sender(about).run(messages)
    except Timeout:
        _warn("another process trains the very same and has the run in MLflow")
    except Exception as error:  # the stage must hear of it in one line, and go on
        _warn(f"nothing more is logged while this runs: {type(error).__name__}: {error}")


def _read(messages: queue.SimpleQueue[dict[str, Any] | None]) -> None:
    """Empty the pipe at once, so that it never fills up."""
    rest = b""
    while part := os.read(0, 65536):  # not by sys.stdin, whose lock would be held when the process ends
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            messages.put(json.loads(line))
    messages.put(None)  # half a line in ``rest``: the stage was killed while it wrote


@dataclass
class Sender:
    """One live run: what it is to hold, what it holds, and the store if that can be reached."""

    about: dict[str, Any]
    wanted: dict[tuple[str, int], tuple[float, int]] = field(default_factory=dict)
    """Points by key and step that were not sent yet: value, and when they were measured (ms)."""
    curve: dict[tuple[str, int], tuple[float, int]] = field(default_factory=dict)
    """The points of the learning curve so far, sent or not."""
    store: Store | None = None
    run_id: str = ""
    logged: Logged = field(default_factory=dict)
    retry_at: float = 0.0
    warned: bool = False
    monitor: Any = None
    taken_up: Any = None
    """The run that was interrupted, as it was before this process went on with it."""

    def __post_init__(self) -> None:
        self.root = Path(self.about["root"])
        self.note = Unclosed(self.root, self.about["key"])

    def run(self, messages: queue.SimpleQueue[dict[str, Any] | None]) -> None:
        """Send what comes, until the stage has ended."""
        status, ended, made = "", 0, {}
        self.deliver()  # the run is there before there is anything to show
        send_at = time.monotonic() + self.about["send_seconds"]
        while not status:
            try:
                message = messages.get(timeout=max(0.0, send_at - time.monotonic()))
            except queue.Empty:
                self.deliver()
                send_at = time.monotonic() + self.about["send_seconds"]
                continue
            if message is None:
                status, ended = "KILLED", _now()
            elif "end" in message:
                status, ended, made = message["end"], message["at"], message["made"]
            else:
                self.take_in(message)
        self.close(status, ended, made)

    def take_in(self, message: dict[str, Any]) -> None:
        """Note what the stage tells: rows of a learning curve, or rates of a step."""
        if "rows" in message:
            rows = [TABLES[self.about["stage"]](**row) for row in message["rows"]]
            points = _points(curve_points(rows), message["at"])
            self.curve |= points
        else:
            part, step, values = message["part"], message["step"], message["values"]
            points = _points(
                [(metric_key(f"{part}/{name}"), value, step) for name, value in values.items()], message["at"]
            )
        self.wanted |= points

    def deliver(self, last: bool = False) -> bool:
        """Send what was not sent yet, unless the store is being left alone; whether it has everything."""
        if not last and time.monotonic() < self.retry_at:
            return False
        try:
            if self.store is None:
                self._open()
            self._send()
        except StoreError as error:
            self._leave_alone(error)
            return False
        return True

    def close(self, status: str, ended: int, tags: dict[str, str]) -> None:
        """Give the run its end; where that fails, leave a note of it for ``track``."""
        self._stop_monitor()
        delivered = self.deliver(last=True)
        if self.run_id:
            self.note.write(store_uri(self.root), self.run_id, status=status, ended=ended, tags=tags)
        if not delivered:
            return
        assert self.store is not None
        try:
            self.store.set_tags(self.run_id, tags)
            self.store.end(self.run_id, status, ended)
            self.note.remove()
        except StoreError as error:
            self._leave_alone(error)

    def _open(self) -> None:
        """Open the store and the run: the one that was interrupted, or a new one."""
        with open_store(self.root) as store:
            known = {ROLE: STAGE, "offramp.stage": self.about["stage"], KEY: self.about["key"]}
            runs = store.find(known, finished=None)
            if runs:
                self.run_id, self.logged = runs[0].info.run_id, logged_points(store, runs[0])
                self.taken_up = self.taken_up or runs[0]
                store.begin_again(self.run_id)
                self.note.write(store.uri, self.run_id)
            else:
                self.logged = {}
                self._begin(store)
            with suppress(StoreError):  # who may not write on the experiment may still log a run
                describe_experiment(store, self.root)
        self.store, self.wanted = store, {**self.wanted, **self.curve}
        self._start_monitor()

    def _begin(self, store: Store) -> None:
        about = self.about
        tags = {ROLE: STAGE, "offramp.stage": about["stage"], KEY: about["key"], **common_tags(self.root)}
        record = RunRecord(about["stage"], tags, flatten(about["params"]))
        self.run_id = store.begin(record, about["begun"])
        self.note.write(store.uri, self.run_id)

    def _send(self) -> None:
        """Send the points that the run does not hold."""
        assert self.store is not None
        differs = [
            point
            for point in self.wanted.keys() & self.curve.keys() & self.logged.keys()
            if not same(self.logged[point], self.wanted[point][0])
        ]
        if differs:
            self._begin_anew()
        new = {point: value for point, value in self.wanted.items() if point not in self.logged}
        self.store.log(self.run_id, [(key, value, step, at) for (key, step), (value, at) in new.items()])
        self.logged |= {point: value for point, (value, _) in new.items()}
        self.wanted = {}

    def _begin_anew(self) -> None:
        """Replace the run by one that holds this training's curve, and of the old one's rates what it has."""
        assert self.store is not None
        old, rates = self.run_id, {p: v for p, v in self.logged.items() if p not in self.curve}
        self._stop_monitor()
        self._begin(self.store)
        self.logged = {}
        # a point that only the interrupted training had will come again, with its own value
        told = {key for key, _ in self.curve}
        kept = {point: (value, _now()) for point, value in rates.items() if point[0] not in told}
        self.wanted = {**kept, **self.curve, **self.wanted}
        if adopted(self.taken_up):  # it has a result of its own, made before
            self.store.end(old, "FINISHED", self.taken_up.info.end_time)
        else:
            self.store.delete(old)
        self.taken_up = None
        self._start_monitor()

    def _leave_alone(self, error: StoreError) -> None:
        self._stop_monitor()
        self.store, self.retry_at = None, time.monotonic() + self.about["pause_seconds"]
        if not self.warned:
            _warn(
                f"not reached: {error}\nThe stage goes on and writes its results to metrics/. MLflow is "
                f"tried again every {self.about['pause_seconds']:g} s; what it misses, `offramp track` adds."
            )
        self.warned = True

    def _start_monitor(self) -> None:
        if not self.about["system_metrics"]:
            return
        assert self.store is not None
        try:
            from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

            self.monitor = SystemMetricsMonitor(self.run_id, resume_logging=True, tracking_uri=self.store.uri)
        except Exception as error:  # whatever psutil raises where the system does not let it count
            self.about["system_metrics"] = False
            _warn(f"this machine cannot be measured, so no system metrics: {type(error).__name__}: {error}")
            return
        self.monitor.start()

    def _stop_monitor(self) -> None:
        if self.monitor is not None:
            self.monitor.finish()
        self.monitor = None


def _points(points: list[Point], at: int) -> dict[tuple[str, int], tuple[float, int]]:
    """What MLflow can hold of them: it has no infinity."""
    return {(key, step): (value, at) for key, value, step in points if math.isfinite(value)}


def _now() -> int:
    return time.time_ns() // 1_000_000


def _warn(message: str) -> None:
    print(f"warning: MLflow: {without_secrets(message)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
