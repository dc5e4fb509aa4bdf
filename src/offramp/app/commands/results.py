"""Commands on finished results: where a number comes from, the log in MLflow, and the parameters."""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys

from offramp.app.commands.options import project_folder, refuse_idle
from offramp.errors import UserError


def lineage(options: argparse.Namespace) -> int:
    """Print the chain from a number to text, parameters and commit; 0 if it holds, 1 if it is broken."""
    from offramp.lineage.chain import trace
    from offramp.report.lineage import show

    refuse_idle(options, options.json, ("all",), "--json has everything in it")
    chain = trace(options.path)
    if options.json:
        print(json.dumps(chain.to_json(), indent=2))
    else:
        show(chain, options.all)
    return 1 if chain.problems else 0


def track(options: argparse.Namespace) -> int:
    """Log the results on disk to MLflow; 0 if it has them now, 1 if its store could not be used."""
    from offramp.params import read_params
    from offramp.report.headline import headline_sentence, print_headline
    from offramp.tracking.recorded import find_root
    from offramp.tracking.tracking import track

    root = find_root()
    print_headline(root)
    with_model = read_params(root / "params.yaml").tracking.log_model
    return 0 if track(root, headline_sentence(root), with_model) else 1


def compare(options: argparse.Namespace) -> int:
    """Print the few numbers to compare of every DVC experiment; UserError where DVC has none to list."""
    from offramp.report.compare import comparison, experiments
    from offramp.report.headline import console
    from offramp.tracking.recorded import find_root

    console().print(comparison(experiments(find_root())))
    return 0


def ui(options: argparse.Namespace) -> int:
    """Become the MLflow server of the project's runs; return 0 where they are on a server already.

    UserError where no run is logged yet, or the port cannot be used.
    """
    from offramp.tracking.address import is_server, store_uri
    from offramp.tracking.recorded import find_root
    from offramp.tracking.store import StoreError, open_store
    from offramp.tracking.view import TAG, address, page

    root = find_root()
    uri = store_uri(root)
    try:
        with open_store(root, write=False) as store:
            pages = [page(store.experiment_id, TAG in store.tags(), charts) for charts in (False, True)]
    except StoreError as error:
        raise UserError(f"{error}; `dvc repro` or `offramp track` logs the first run") from None
    if is_server(uri):
        print(f"The runs: {address(uri, pages[0])}\nas charts: {address(uri, pages[1])}")
        return 0
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", options.port))
        except OSError as error:
            raise UserError(
                f"port {options.port} cannot be used ({error.strerror}); choose another with --port"
            ) from None
    server = f"http://127.0.0.1:{options.port}"
    print(f"MLflow UI, ready in about ten seconds; Ctrl-C ends it: {address(server, pages[0])}")
    print(f"as charts: {address(server, pages[1])}", flush=True)
    # one worker and no job queue: one person looks at it, and each worker takes 250 MB
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    os.environ["MLFLOW_BACKEND_STORE_URI"] = uri  # a command line, with a password in it, is seen by everyone
    command = ["--host", "127.0.0.1", "--port", str(options.port), "--workers", "1"]
    os.chdir(root)
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "server", *command])


def params(options: argparse.Namespace) -> int:
    """Say that a file of parameters is valid; UserError where it is not."""
    from offramp.params import read_params

    file = options.file or project_folder() / "params.yaml"
    read_params(file)
    print(f"{file}: ok")
    return 0
