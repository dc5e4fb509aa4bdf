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
from contextlib import contextmanager
from pathlib import Path
from typing import Any, SupportsFloat

import numpy as np
import torch

from benchmarks.inputs import RandomWindows, default_model
from benchmarks.measure import ROOT, Row, median_ratio, seconds
from offramp.machine.watch import NOBODY, Watch
from offramp.params import Pretrain, load_params
from offramp.tracking.live import live_run
from offramp.training.pretrain import Pretrainer
from offramp.training.snapshots import Snapshots

PAIRS, STEPS = 7, 80
OPENING_SECONDS = 15
"""Until the run is open, or the server was given up: that is paid once, not in every step."""


class Timed(Watch):
    """Hands on, and takes the time of it: what the training itself does for being watched."""

    def __init__(self, watch: Watch):
        self.watch, self.seconds = watch, 0.0

    def curve(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.seconds += seconds(lambda: self.watch.curve(rows))

    def step(self, part: str, number: int, tokens: int, **values: SupportsFloat) -> None:
        self.seconds += seconds(lambda: self.watch.step(part, number, tokens, **values))


def run() -> Iterator[Row]:
    against = (
        f"the same {STEPS} steps and looks at the default sizes with nobody told; the run was opened before, "
        "and the server is on the same machine"
    )
    with tempfile.TemporaryDirectory() as folder, server(Path(folder)) as uri:
        for name, address in (("up", uri), ("down", "http://127.0.0.1:9")):
            watched, alone, inside = zip(*(pair(Path(folder), address, number) for number in range(PAIRS)))
            yield Row(
                f"live_tracking_server_{name}",
                median_ratio(watched, alone),
                "x time",
                "<= 1.01",
                f"{against}; {np.median(alone):.1f} s",
            )
            yield Row(
                f"live_tracking_inside_server_{name}",
                median_ratio(inside, watched),
                "share of time",
                "<= 0.01",
                "the time of the whole training, of which this is what it spends on telling",
            )


def pair(folder: Path, uri: str, number: int) -> tuple[float, float, float]:
    """Seconds of a training with and without a live run, in changing order, and those spent on telling."""
    alone = train(folder, NOBODY) if number % 2 else 0.0
    os.environ["MLFLOW_TRACKING_URI"] = uri
    with live_run(
        "pretrain", load_params("pretrain", ROOT), ROOT, f"benchmark-{os.getpid()}-{number}"
    ) as live:
        time.sleep(OPENING_SECONDS)
        watch = Timed(live)
        watched = train(folder, watch)
    del os.environ["MLFLOW_TRACKING_URI"]
    return watched, alone or train(folder, NOBODY), watch.seconds


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
