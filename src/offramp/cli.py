"""The ``offramp`` command: what a user asks of finished results. Training and evaluation are DVC's to run."""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
from pathlib import Path

from offramp.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand; its exit code. Mistakes of the user end with a message on stderr and code 2."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def lineage(options: argparse.Namespace) -> int:
    """0 if the chain from the number to text, parameters and commit holds, 1 if it is broken."""
    from offramp.lineage.chain import trace
    from offramp.lineage.show import show

    chain = trace(options.path)
    if options.json:
        print(json.dumps(chain.to_json(), indent=2))
    else:
        show(chain)
    return 1 if chain.problems else 0


def track(options: argparse.Namespace) -> int:
    """0 if MLflow has the results now, 1 if its store could not be used."""
    from offramp.lineage.recorded import find_root
    from offramp.lineage.tracking import track

    return 0 if track(find_root()) else 1


def separation(options: argparse.Namespace) -> int:
    """Print how signals separate easy from hard tokens of a states artifact, and what an exit's losses look like."""
    from rich.console import Console

    from offramp.analysis.separation import separation, signals_of, table
    from offramp.lineage.artifact import open_artifact
    from offramp.runtime import setup
    from offramp.states.store import States

    setup("cpu", os.cpu_count() or 1)
    states = States(open_artifact(options.states, "states"))
    _check_exit(options.exit, states.num_exits)
    found = separation(states, options.exit, signals_of(states, options.exit), options.draws)
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        Console(width=160).print(table(found))
    return 0


def low_rank(options: argparse.Namespace) -> int:
    """Print what low-rank readouts keep of an exit's logits and signals."""
    from rich.console import Console

    from offramp.analysis.low_rank import sweep_states, table
    from offramp.lineage.artifact import open_artifact
    from offramp.runtime import setup
    from offramp.states.store import States

    setup("cpu", os.cpu_count() or 1)
    fit, measured = (States(open_artifact(path, "states")) for path in (options.fit, options.states))
    _check_exit(options.exit, measured.num_exits)
    rows = sweep_states(fit, measured, options.exit, options.ranks, options.tokens)
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        Console(width=160).print(table(rows))
    return 0


def _check_exit(exit: int, exits: int) -> None:
    if not 0 <= exit < exits:
        raise UserError(f"--exit {exit}: these states have exits 0 to {exits - 1}")


def params(options: argparse.Namespace) -> int:
    """0 if params.yaml is valid."""
    from offramp.params import read_params

    read_params(options.file)
    print(f"{options.file}: ok")
    return 0


def ui(options: argparse.Namespace) -> int:
    """Become the MLflow server; return only if there is nothing to start."""
    from offramp.lineage.recorded import find_root
    from offramp.lineage.store import StoreError, is_server, open_store, store_uri

    root = find_root()
    uri = store_uri(root)
    try:
        with open_store(root, write=False) as store:
            page = f"#/experiments/{store.experiment_id}/runs"
    except StoreError as error:
        raise UserError(f"{error}; `dvc repro` or `offramp track` logs the first run") from None
    if is_server(uri):
        print(f"The runs are on {uri}/{page} (choose Model training at the top left)")
        return 0
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", options.port))
        except OSError as error:
            raise UserError(f"port {options.port} cannot be used ({error.strerror}); choose another with --port") from None
    print(f"MLflow UI, ready in about ten seconds: http://127.0.0.1:{options.port}/{page}")
    print("It opens in GenAI mode: choose Model training at the top left. Ctrl-C ends it.", flush=True)
    # one worker and no job queue: one person looks at it, and each worker takes 250 MB
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    server = ["--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(options.port), "--workers", "1"]
    os.chdir(root)
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "server", *server])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="offramp", description=__doc__)
    commands = parser.add_subparsers(title="commands", required=True)

    def command(name: str, run, text: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run)
        return added

    walk = command("lineage", lineage, "walk from a metrics file or artifact to text, parameters and commit, checking it")
    walk.add_argument("path", nargs="?", type=Path, help="a stage's output or an artifact folder (metrics/routing.json)")
    walk.add_argument("--json", action="store_true", help="print JSON")
    command("track", track, "log the results on disk to MLflow, if they are not there yet")
    apart = command("separation", separation, "how signals tell easy from hard tokens of a states artifact, with intervals")
    apart.add_argument("states", nargs="?", type=Path, default=Path("states/test"), help="default: states/test")
    apart.add_argument("--exit", type=int, default=0, help="default: 0")
    apart.add_argument("--draws", type=int, default=1000, help="bootstrap draws of sequences behind every interval (1000)")
    apart.add_argument("--json", action="store_true", help="print JSON: also histogram, quantiles, risk-coverage, subsets")
    rank = command("low-rank", low_rank, "what low-rank readouts keep of an exit's logits, signals and separation, by rank")
    rank.add_argument("states", nargs="?", type=Path, default=Path("states/test"), help="measured on (states/test)")
    rank.add_argument("--fit", type=Path, default=Path("states/calibration"), help="approximated on (states/calibration)")
    rank.add_argument("--exit", type=int, default=0, help="default: 0")
    rank.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 5, 10, 20, 32, 64], help="default: 1 2 5 10 20 32 64")
    rank.add_argument("--tokens", type=int, default=20_000, help="evenly spaced tokens measured (20000)")
    rank.add_argument("--json", action="store_true", help="print JSON")
    check = command("params", params, "check params.yaml")
    check.add_argument("file", nargs="?", type=Path, default=Path("params.yaml"), help="another file to check")
    serve = command("ui", ui, "open the MLflow UI on the project's runs, on this machine only")
    serve.add_argument("--port", type=int, default=5000, help="default: 5000")
    return parser


if __name__ == "__main__":
    sys.exit(main())
