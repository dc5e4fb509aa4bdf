"""The run of a stage in MLflow while the stage is running, as the stage itself sees it.

A stage writes what it has to tell into a pipe, and another process (``offramp.tracking.sender``) reads it and
talks to MLflow. So a step never waits for a server, MLflow takes no time of the interpreter that trains and
is not even imported by it, and however the stage ends, also by ``kill -9``, the other process sees the pipe
close and gives the run its true status. The pipe and a list of what did not fit into it are the bounded
queue: what fits into neither is dropped, and ``track`` adds it from the files when the pipeline ends.

Nothing comes back through the pipe. That is why this module is no part of a stage's code
(``offramp.lineage.code``): whatever happens to a live run, the results are the same bits.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import select
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, SupportsFloat

from offramp.machine.watch import NOBODY, Watch
from offramp.params import Declared
from offramp.tracking.recorded import made_tags

SEND_SECONDS = 5.0
"""How often a batch goes to MLflow, and how often the rates of a step are among it."""
PAUSE_SECONDS = 180.0
"""How long MLflow is left alone after it could not be reached."""
END_SECONDS = 20.0
"""How long a stage waits at its end for MLflow to have the rest."""
WAITING = 10_000
"""Most messages kept when the pipe is full."""
SPARE = 1000
"""In long trainings the rates of a step are logged this often in all, so that runs stay small."""
BRIEF = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""One more try at once, and then the pause, instead of MLflow's own repetitions.

MLflow's server closes a connection that was idle for five seconds, perhaps just as the next batch is sent.
"""


@contextmanager
def live_run(stage: str, params: Declared, root: Path, key: str, main: bool = True) -> Iterator[Watch]:
    """A run in MLflow from here to the end of the block, told of by the watch that is yielded.

    ``key`` names everything that the stage's outcome hangs on: a run of the same key that did not finish is
    taken up. The run ends FINISHED, FAILED where an exception leaves the block, and KILLED where the user or
    a signal ended the process. Only the ``main`` of several processes has a run, and nobody has where
    ``tracking.live`` is false.
    """
    if not (main and params.tracking.live):
        yield NOBODY
        return
    live = _start(
        {
            "stage": stage,
            "root": str(root.resolve()),
            "key": key,
            "params": params.to_json(),
            "begun": _now(),
            "system_metrics": params.tracking.system_metrics,
            "send_seconds": SEND_SECONDS,
            "pause_seconds": PAUSE_SECONDS,
        }
    )
    try:
        yield live
    except KeyboardInterrupt:
        live.end("KILLED")
        raise
    except BaseException:
        live.end("FAILED")
        raise
    # read now: the folder of an experiment may be gone when MLflow is told
    live.end("FINISHED", made_tags(stage, root))


class Live(Watch):
    """Tells the process that talks to MLflow: the points of curves, and now and then the rates of a step."""

    def __init__(self, sender: subprocess.Popen[bytes]):
        assert sender.stdin is not None
        self.sender, self.pipe = sender, sender.stdin
        os.set_blocking(self.pipe.fileno(), False)
        self.waiting: list[bytes] = []
        self.begun = self.since = time.perf_counter()
        """When the training began, and since when ``tokens`` are counted."""
        self.tokens = 0
        self.last: tuple[str, int, float, Mapping[str, SupportsFloat]] | None = None
        """The step last made that was not told yet: part, number, when, values."""
        self.part = ""

    def curve(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._rates()
        if rows:
            self._tell({"at": _now(), "rows": rows})
        self._count_from(time.perf_counter())  # a look takes no time of the steps'

    def step(self, part: str, number: int, tokens: int, **values: SupportsFloat) -> None:
        now = time.perf_counter()
        if part != self.part:  # what lies between two parts takes no time of the steps' either
            self._rates()
            self.part = part
            self._count_from(now)
            return
        self.tokens += tokens
        self.last = part, number, now, values
        if now - self.since >= max(SEND_SECONDS, (now - self.begun) / SPARE):
            self._rates()
            self._count_from(now)

    def end(self, status: str, made: Mapping[str, str] = MappingProxyType({})) -> None:
        """Tell how the stage ended and the tags of what it ``made``, and wait a while for MLflow to know."""
        self._rates()
        self._tell({"at": _now(), "end": status, "made": dict(made)})
        deadline = time.monotonic() + END_SECONDS
        while self.waiting and time.monotonic() < deadline:
            select.select([], [self.pipe], [], 0.1)
            self._write()
        try:
            self.pipe.close()
            self.sender.wait(max(0.0, deadline - time.monotonic()))
        except BrokenPipeError:
            pass
        except subprocess.TimeoutExpired:
            logging.getLogger(__name__).warning(
                "MLflow is slow and gets the rest of this run in the background; results do not wait for it"
            )

    def _rates(self) -> None:
        if self.last is None:
            return
        part, number, at, values = self.last
        self.last = None
        told = {name: float(value) for name, value in values.items()}
        told |= {"tokens_per_second": self.tokens / (at - self.since), "memory_gib": _memory()}
        self._tell({"at": _now(), "part": part, "step": number, "values": told})

    def _count_from(self, now: float) -> None:
        self.since, self.tokens, self.last = now, 0, None

    def _tell(self, message: dict[str, Any]) -> None:
        if len(self.waiting) < WAITING or "end" in message:
            self.waiting.append(json.dumps(message).encode() + b"\n")
        self._write()

    def _write(self) -> None:
        """Write as much into the pipe as fits into it."""
        while self.waiting:
            line = self.waiting[0]
            try:
                written = os.write(self.pipe.fileno(), line)
            except BlockingIOError:
                return
            except OSError:  # nobody reads any more: that process has said why
                self.waiting = []
                return
            self.waiting[0] = line[written:]
            if not self.waiting[0]:
                del self.waiting[0]


def _start(about: dict[str, Any]) -> Live:
    """Start the process that talks to MLflow, in a session of its own: Ctrl-C in a terminal goes to all
    processes of one, and this one is to report it."""
    # the same code as here, which in DVC's copy of a project is not the installed one
    path = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    sender = subprocess.Popen(
        [sys.executable, "-m", "offramp.tracking.sender"],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        bufsize=0,
        start_new_session=True,
        env={**BRIEF, **os.environ, "PYTHONPATH": path},
    )
    live = Live(sender)
    live._tell(about)
    return live


def _memory() -> float:
    """GiB: the most that this process has held so far, on its GPU if it computes there, else in memory."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def _now() -> int:
    return time.time_ns() // 1_000_000
