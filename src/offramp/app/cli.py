"""The ``offramp`` command: what a user asks of finished results. Training and evaluation are DVC's to run."""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from offramp.errors import UserError, memory_for


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand; its exit code. Mistakes of the user end with a message on stderr and code 2."""
    options = _parser().parse_args(arguments)
    try:
        with memory_for("offramp", options.memory):
            return options.run(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def lineage(options: argparse.Namespace) -> int:
    """0 if the chain from the number to text, parameters and commit holds, 1 if it is broken."""
    from offramp.lineage.chain import trace
    from offramp.report.lineage import show

    chain = trace(options.path)
    if options.json:
        print(json.dumps(chain.to_json(), indent=2))
    else:
        show(chain)
    return 1 if chain.problems else 0


def track(options: argparse.Namespace) -> int:
    """0 if MLflow has the results now, 1 if its store could not be used."""
    from offramp.report.headline import headline_sentence, print_headline
    from offramp.tracking.recorded import find_root
    from offramp.tracking.tracking import track

    root = find_root()
    print_headline(root)
    return 0 if track(root, headline_sentence(root)) else 1


def separation(options: argparse.Namespace) -> int:
    """Print how signals separate easy from hard tokens of a states artifact, and what an exit's losses look like."""
    from rich.console import Console

    from offramp.analysis.separation import separation, signals_of, table
    from offramp.artifacts.artifact import open_artifact
    from offramp.machine.device import setup
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
    from offramp.artifacts.artifact import open_artifact
    from offramp.machine.device import setup
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


def generate(options: argparse.Namespace) -> int:
    """Continue a prompt with the routed model, as params.yaml says who may leave."""
    from rich.console import Console

    from offramp.app.project import open_project
    from offramp.report.console import compare, stream
    from offramp.routing.generate import Sampling, Speculation, decode, speculate

    _check_generate(options)
    project = open_project()
    model, prompts, stop = project.model, [project.encode_prompt(options.prompt)], project.stop_ids
    given = {
        name: value for name, value in (("top_p", options.top_p), ("seed", options.seed)) if value is not None
    }
    sampling = Sampling(options.temperature, **given) if options.temperature is not None else None

    def full(work=None):
        return decode(model, prompts, options.tokens, sampling=sampling, stop=stop, work=work)

    drafting: list[Speculation] = []
    if options.speculate is not None:

        def early(work=None):
            length = {} if options.draft is None else {"length": options.draft}
            drafting.append(
                Speculation(options.speculate, **length)
            )  # each run finds out anew whether drafts pay
            return speculate(model, prompts, options.tokens, drafting[-1], stop, work)
    elif options.full:
        early = full
    else:
        threshold = (
            options.threshold[0] if options.threshold and len(options.threshold) == 1 else options.threshold
        )
        policy, kv = project.policy(threshold), project.params.routing.kv

        def early(work=None):
            return decode(
                model, prompts, options.tokens, policy, kv, sampling, stop, options.route_prompt, work
            )

    console = Console(highlight=False)
    stream(console, early(), project.tokenizer, project.kind, model.config.num_blocks - 1, options.colour)
    if options.stats:
        console.print(compare(model, len(prompts[0]), early, full))
        if drafting:
            console.print(
                f"{drafting[0].accepted} of {drafting[0].drafted} drafted tokens were right; "
                f"drafting {'paid and stayed on' if drafting[0].pays else 'did not pay and was given up'}"
            )
    return 0


def _check_generate(options: argparse.Namespace) -> None:
    greedy = ("temperature", "top_p", "seed", "threshold", "route_prompt", "full")
    _refuse_idle(
        options, options.speculate is not None, greedy, "--speculate makes the greedy tokens of full depth"
    )
    _refuse_idle(options, options.full, ("threshold", "route_prompt"), "--full lets nobody leave")
    _refuse_idle(
        options, options.temperature is None, ("top_p", "seed"), "without --temperature nothing is drawn"
    )
    _refuse_idle(options, options.speculate is None, ("draft",), "without --speculate nothing is drafted")


def _refuse_idle(options: argparse.Namespace, applies: bool, names: Sequence[str], reason: str) -> None:
    """UserError for the first of the options ``names`` that was given, where they have no effect."""
    given = [
        name for name in names if getattr(options, name) is not None and getattr(options, name) is not False
    ]
    if applies and given:
        raise UserError(f"--{given[0].replace('_', '-')} has no effect: {reason}; leave it out")


def suitability(options: argparse.Namespace) -> int:
    """Print whether early exit is worth it, for the project's model or for a checkpoint as it is."""
    from rich.console import Console

    from offramp.analysis.advice import table
    from offramp.analysis.suitability import assess, of_checkpoint, of_states
    from offramp.app.project import open_project
    from offramp.artifacts.artifact import open_artifact
    from offramp.checkpoints.checkpoint import Checkpoint
    from offramp.machine.device import setup

    of_model = ("exits_after", "text", "gguf_file", "revision", "window")
    _refuse_idle(
        options,
        options.model is None,
        of_model,
        "without --model the project's own model is measured, on its states",
    )
    _refuse_idle(options, options.model is not None, ("states",), "--model is measured on --text")
    sizes = {"tokens": options.tokens, "rounds": options.rounds, "batch_size": options.batch_size}
    if options.model is None:
        project = open_project()
        path = options.states or Path("states", "test" if Path("states/test").is_dir() else "calibration")
        states = open_artifact(path, "states", inputs={"data": project.data, "lm": project.lm})
        settings, hidden = project.params.routing, project.params.exits.hidden
        subject = of_states(project.data, project.lm, project.model, states, settings, hidden, **sizes)
    else:
        if not options.exits_after or options.text is None:
            raise UserError(
                "--model needs --exits-after, e.g. --exits-after 10 20, and --text, a file of text like that to be run"
            )
        try:
            text = options.text.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"--text {options.text} cannot be read ({error}); give a file of UTF-8 text"
            ) from None
        checkpoint = Checkpoint(options.model, options.gguf_file, options.revision)
        subject = of_checkpoint(
            checkpoint,
            options.exits_after,
            text,
            setup("auto", os.cpu_count() or 1),
            window=options.window or 128,
            **sizes,
        )
    result = assess(subject)
    if options.json:
        print(json.dumps(result.to_json(), indent=2))
    else:
        console = Console(width=160)
        console.print(table(result))
        console.print(result.advice.sentence, result.advice.propagation, soft_wrap=True, highlight=False)
    return 0


def lm_eval(options: argparse.Namespace) -> int:
    """Run lm_eval's own command on the project's routed model."""
    try:
        from offramp.app.harness import evaluate
    except ModuleNotFoundError as error:
        if error.name != "lm_eval":
            raise
        raise UserError(
            "lm_eval is not installed; run `pip install 'offramp[eval]'`, in a checkout `pip install -c constraints.txt -e '.[eval]'`"
        ) from None
    evaluate(options.arguments)
    return 0


def _check_exit(exit: int, exits: int) -> None:
    if not 0 <= exit < exits:
        raise UserError(f"--exit {exit}: these states have exits 0 to {exits - 1}")


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: give at least 1")
    return value


def convert(options: argparse.Namespace) -> int:
    """0 once the checkpoint folder is written."""
    from offramp.models.convert import convert_gguf

    convert_gguf(options.gguf, options.out)
    print(options.out)
    return 0


def params(options: argparse.Namespace) -> int:
    """0 if params.yaml is valid."""
    from offramp.params import read_params

    read_params(options.file)
    print(f"{options.file}: ok")
    return 0


def ui(options: argparse.Namespace) -> int:
    """Become the MLflow server; return only if there is nothing to start."""
    from offramp.tracking.recorded import find_root
    from offramp.tracking.store import StoreError, is_server, open_store, store_uri

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
            raise UserError(
                f"port {options.port} cannot be used ({error.strerror}); choose another with --port"
            ) from None
    print(f"MLflow UI, ready in about ten seconds: http://127.0.0.1:{options.port}/{page}")
    print("It opens in GenAI mode: choose Model training at the top left. Ctrl-C ends it.", flush=True)
    # one worker and no job queue: one person looks at it, and each worker takes 250 MB
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"
    server = [
        "--backend-store-uri",
        uri,
        "--host",
        "127.0.0.1",
        "--port",
        str(options.port),
        "--workers",
        "1",
    ]
    os.chdir(root)
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "server", *server])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="offramp", description=__doc__)
    commands = parser.add_subparsers(title="commands", required=True)

    def command(
        name: str, run, text: str, memory: str = "the size of what it reads"
    ) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.set_defaults(run=run, memory=memory)
        return added

    walk = command(
        "lineage", lineage, "walk from a metrics file or artifact to text, parameters and commit, checking it"
    )
    walk.add_argument(
        "path", nargs="?", type=Path, help="a stage's output or an artifact folder (metrics/routing.json)"
    )
    walk.add_argument("--json", action="store_true", help="print JSON")
    command("track", track, "log the results on disk to MLflow, if they are not there yet")
    apart = command(
        "separation",
        separation,
        "how signals tell easy from hard tokens of a states artifact, with intervals",
    )
    apart.add_argument(
        "states", nargs="?", type=Path, default=Path("states/test"), help="default: states/test"
    )
    apart.add_argument("--exit", type=int, default=0, help="default: 0")
    apart.add_argument(
        "--draws", type=int, default=1000, help="bootstrap draws of sequences behind every interval (1000)"
    )
    apart.add_argument(
        "--json", action="store_true", help="print JSON: also histogram, quantiles, risk-coverage, subsets"
    )
    rank = command(
        "low-rank",
        low_rank,
        "what low-rank readouts keep of an exit's logits, signals and separation, by rank",
        "--tokens",
    )
    rank.add_argument(
        "states", nargs="?", type=Path, default=Path("states/test"), help="measured on (states/test)"
    )
    rank.add_argument(
        "--fit", type=Path, default=Path("states/calibration"), help="approximated on (states/calibration)"
    )
    rank.add_argument("--exit", type=int, default=0, help="default: 0")
    rank.add_argument(
        "--ranks", type=int, nargs="+", default=[1, 2, 5, 10, 20, 32, 64], help="default: 1 2 5 10 20 32 64"
    )
    rank.add_argument("--tokens", type=int, default=20_000, help="evenly spaced tokens measured (20000)")
    rank.add_argument("--json", action="store_true", help="print JSON")
    write = command(
        "generate",
        generate,
        "continue a prompt; who leaves early is what params.yaml says",
        "--tokens or the prompt",
    )
    write.add_argument("--prompt", required=True, help="text to continue")
    write.add_argument("--tokens", type=_count, default=64, help="most new tokens (64)")
    write.add_argument(
        "--threshold",
        type=float,
        nargs="+",
        help="another threshold than params.yaml's, 0 to 1, or one per exit",
    )
    write.add_argument("--full", action="store_true", help="full depth: nobody leaves")
    write.add_argument(
        "--route-prompt",
        action="store_true",
        help="let the prompt's tokens leave early too, as in evaluation",
    )
    write.add_argument(
        "--speculate",
        type=int,
        metavar="EXIT",
        help="this exit drafts, full depth verifies: its greedy tokens, sooner",
    )
    write.add_argument("--draft", type=_count, help="most tokens of a draft (4)")
    write.add_argument("--temperature", type=float, help="sample instead of taking the likeliest token")
    write.add_argument("--top-p", type=float, help="sample from the fewest tokens with this probability (1)")
    write.add_argument("--seed", type=int, help="of the sampling (0)")
    write.add_argument(
        "--colour", action="store_true", help="colour every token by the exit that predicted it"
    )
    write.add_argument(
        "--stats", action="store_true", help="then print depth used, tokens/s and speed against full depth"
    )
    fits = command(
        "suitability",
        suitability,
        "whether early exit is worth it: agreement, oracle bounds, break-even and advice",
        "--batch-size, --tokens or --window",
    )
    fits.add_argument(
        "--states", type=Path, help="of the project's model (states/test, else states/calibration)"
    )
    fits.add_argument(
        "--model", help="instead of the project's, a checkpoint: a folder, or a name on the Hugging Face hub"
    )
    fits.add_argument("--gguf-file", help="file within it, for weights in the GGUF format")
    fits.add_argument("--revision", help="commit, branch or tag on the hub")
    fits.add_argument(
        "--exits-after",
        type=int,
        nargs="+",
        metavar="LAYERS",
        help="of --model: layers after which an exit would stand",
    )
    fits.add_argument("--text", type=Path, help="of --model: UTF-8 text like that to be run")
    fits.add_argument("--window", type=_count, help="of --model: tokens per sequence (128)")
    fits.add_argument(
        "--tokens", type=_count, default=16384, help="most tokens that quality is measured on (16384)"
    )
    fits.add_argument("--rounds", type=_count, default=5, help="batches timed (5)")
    fits.add_argument(
        "--batch-size", type=_count, help="sequences of a timed batch (routing.batch_size; 4 with --model)"
    )
    fits.add_argument("--json", action="store_true", help="print JSON")
    judge = commands.add_parser(
        "lm-eval",
        help="EleutherAI's lm-evaluation-harness on the routed model; takes its options",
        prefix_chars="\0",
        add_help=False,
    )  # no prefix: all arguments are passed on
    judge.add_argument("arguments", nargs="*")
    judge.set_defaults(run=lm_eval, memory="--batch_size")
    turn = command("convert", convert, "turn a GGUF file into a checkpoint folder that loads in a second")
    turn.add_argument("gguf", type=Path, help="the GGUF file")
    turn.add_argument("out", type=Path, help="the folder to write (model.name_or_path)")
    check = command("params", params, "check params.yaml")
    check.add_argument(
        "file", nargs="?", type=Path, default=Path("params.yaml"), help="another file to check"
    )
    serve = command("ui", ui, "open the MLflow UI on the project's runs, on this machine only")
    serve.add_argument("--port", type=int, default=5000, help="default: 5000")
    return parser


if __name__ == "__main__":
    sys.exit(main())
