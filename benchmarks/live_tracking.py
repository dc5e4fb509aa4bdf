"""What a step of training costs more while MLflow is told of it, with a server that answers and with none."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np
import torch

from benchmarks.inputs import RandomWindows, default_model
from benchmarks.measure import ROOT, Row, median_ratio, seconds
from offramp.machine.watch import NOBODY, Watch
from offramp.params import Pretrain, load_params
from offramp.tracking.live import live_run
from offramp.tracking.live_runs import Unclosed
from offramp.training.pretrain import Pretrainer
from offramp.training.snapshots import Snapshots

REPETITIONS, STEPS = 5, 40
OPENING_SECONDS = 60
"""How long the first run may take to open; the server that is down is given up within a second of it."""


class Timed(Watch):
    """Hands on, and takes the time of it: what the training itself does for being watched."""

    def __init__(self, watch: Watch):
        self.watch, self.seconds = watch, 0.0

    def curve(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.seconds += seconds(lambda: self.watch.curve(rows))

    def step(self, part: str, number: int, tokens: int, **values: SupportsFloat) -> None:
        self.seconds += seconds(lambda: self.watch.step(part, number, tokens, **values))


def run() -> Iterator[Row]:
    """Rows of the cost of a live run, as a ratio by the clock and as the time that the training spends on it.

    A repetition is three trainings in changing order: with nobody told, with a server that answers, and with
    none. The interval is over repetitions, each with runs of its own.
    """
    with tempfile.TemporaryDirectory() as folder, server(Path(folder)) as uri:
        addresses = {"up": uri, "down": "http://127.0.0.1:9"}
        repetitions = [repeat(Path(folder), addresses, number) for number in range(REPETITIONS)]
    alone = [one.alone for one in repetitions]
    against = (
        f"the same {STEPS} steps and looks at the default sizes with nobody told; the run was opened before, "
        f"and the server is on the same machine; {np.median(alone):.1f} s"
    )
    for name in addresses:
        watched, inside = (
            [getattr(one, what)[name] for one in repetitions] for what in ("watched", "inside")
        )
        yield Row(
            f"live_tracking_server_{name}",
            median_ratio(watched, alone),
            "x time",
            "<= 1.01",
            against,
        )
        yield Row(
            f"live_tracking_inside_server_{name}",
            median_ratio(inside, watched),
            "share of time",
            "<= 0.01",
            "the time of the whole training, of which this is what it spends on telling",
        )


@dataclass
class Repetition:
    """Seconds of a training with nobody told, and of one for each server, with those spent on telling it."""

    alone: float
    watched: dict[str, float]
    inside: dict[str, float]


def repeat(folder: Path, addresses: Mapping[str, str], number: int) -> Repetition:
    """The three trainings, every second time the lone one last; both runs are opened at once."""
    done = Repetition(0.0 if number % 2 else train(folder, NOBODY), {}, {})
    params = load_params("pretrain", ROOT)
    with ExitStack() as stack:
        watches = {}
        for name, address in addresses.items():
            with tracking_at(address):
                key = f"benchmark-{os.getpid()}-{number}-{name}"
                watches[name] = stack.enter_context(live_run("pretrain", params, ROOT, key))
        wait_until_open(f"benchmark-{os.getpid()}-{number}-up")
        for name in list(addresses)[:: 1 if number // 2 % 2 else -1]:
            watch = Timed(watches[name])
            done.watched[name] = train(folder, watch)
            done.inside[name] = watch.seconds
    done.alone = done.alone or train(folder, NOBODY)
    return done


@contextmanager
def tracking_at(uri: str) -> Iterator[None]:
    """MLflow's address for processes that are started meanwhile."""
    os.environ["MLFLOW_TRACKING_URI"] = uri
    try:
        yield
    finally:
        del os.environ["MLFLOW_TRACKING_URI"]


def wait_until_open(key: str) -> None:
    """Wait until the run of that key is open: that is paid once, not in every step."""
    note, deadline = Unclosed(ROOT, key).file, time.monotonic() + OPENING_SECONDS
    while not note.is_file():
        if time.monotonic() > deadline:
            raise RuntimeError(f"MLflow has not opened the run within {OPENING_SECONDS} s")
        time.sleep(0.1)
    time.sleep(1)


def train(folder: Path, watch: Watch) -> float:
    """Seconds of a short training."""
    model = default_model()
    windows = [RandomWindows(count, model.config.window, model.config.vocab_size) for count in (640, 64)]
    settings = load_params("pretrain", ROOT).pretrain.model_dump() | {"steps": STEPS, "evaluate_every": 20}
    trainer = Pretrainer(
        model, *windows, Pretrain(**settings), Snapshots(folder, 1e9), torch.device("cpu"), watch=watch
    )
    return seconds(trainer.run)


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """The address of a tracking server of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)),
            *("--backend-store-uri", f"sqlite:///{folder}/mlflow.db"),
            *("--artifacts-destination", str(folder / "artifacts")),
        ],
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        while True:
            try:
                urllib.request.urlopen(f"{uri}/health", timeout=5).close()
                break
            except OSError:
                time.sleep(0.5)
        yield uri
    finally:
        process.terminate()
        process.wait()
