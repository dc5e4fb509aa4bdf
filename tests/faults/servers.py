"""Tracking servers that are not there, do not answer, or die while a run is logged."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import sys
import time
import urllib.request
from contextlib import suppress
from pathlib import Path

from tests.faults.project import Child, contents, fork, restore, start
from tests.faults.tally import Tally

ANSWERS = {
    "refuses": None,
    "closes": b"",
    "errors": b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n",
    "babbles": b"\x00\x01 no HTTP at all\r\n\r\n",
    "denies": b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
    "answers with a page": b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>",
    "redirects to itself": b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n",
}
"""What a server that is none says to every request; None: nobody listens."""
IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "3"}


def _bound() -> socket.socket:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    return listener


def dead(base: Path, root: Path, wanted: dict[str, str], rng: random.Random, tally: Tally) -> None:
    """Log to a server that is none: the stage ends well, says so, and every result is as it was."""
    restore(base, root)
    name = rng.choice(sorted(ANSWERS))
    listener = _bound()
    port = listener.getsockname()[1]
    server = None
    if ANSWERS[name] is not None:
        server = fork(root, lambda: _serve(listener, ANSWERS[name] or b""))
    listener.close()
    done = start(root, "track", MLFLOW_TRACKING_URI=f"http://127.0.0.1:{port}", **IMPATIENT).wait()
    if server:
        server.send(signal.SIGKILL)
        server.wait()
    tally.count(f"the server {name}", done, wrong=_wrong(root, wanted, done.code, done.said))


def _serve(listener: socket.socket, answer: bytes) -> None:
    while True:
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            connection.recv(65536)
            connection.sendall(answer)


def _wrong(root: Path, wanted: dict[str, str], code: int | None, said: str) -> str | None:
    if contents(root) != wanted:
        return "results were changed"
    return None if code == 0 and "MLflow" in said else f"ended with {code}, or without a word"


class Server:
    """A real MLflow server in a forked process, on a store of its own."""

    def __init__(self, folder: Path):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        listener = _bound()
        self.port = listener.getsockname()[1]
        listener.close()
        words = [
            "server",
            "--backend-store-uri",
            f"sqlite:///{folder}/db",
            "--artifacts-destination",
            str(folder),
        ]
        words += ["--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"]
        arguments = [sys.executable, "-m", "mlflow", *words]
        os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
        self.child: Child = fork(folder, lambda: (os.setsid(), os.execv(sys.executable, arguments)))

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ready(self, seconds: float = 120) -> bool:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                return True
            time.sleep(0.2)
        return False

    def kill(self) -> None:
        """Kill it with its workers, which share its session."""
        with suppress(ProcessLookupError):
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait()


def dying(base: Path, root: Path, wanted: dict[str, str], rng: random.Random, tally: Tally) -> None:
    """Kill a real server while the results are logged to it."""
    restore(base, root)
    server = Server(root / "server")
    if not server.ready():
        server.kill()
        return
    logging = start(root, "track", MLFLOW_TRACKING_URI=server.uri, **IMPATIENT)
    time.sleep(rng.uniform(0.1, 2.5))
    server.kill()
    done = logging.wait()
    tally.count("a server that dies", done, wrong=_wrong(root, wanted, done.code, done.said))
