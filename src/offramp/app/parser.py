"""The arguments of the ``offramp`` command, and the function that runs each subcommand.

Nothing is imported here that a subcommand needs: ``offramp --help`` must not wait for torch. Commands stand
in the order in which somebody new to a project needs them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol

from offramp.app.commands import measures, models, results
from offramp.vocabulary import LOOKS_AT, STATE

Run = Callable[[argparse.Namespace], int]

DESCRIPTION = """\
Look at early exit in a language model: whether it is worth it, what it saves
and costs, and where every number comes from. Training and evaluation are
DVC's to run (dvc repro); these commands read what is finished, from any folder
of the project."""
EXAMPLES = (
    "offramp suitability --model HuggingFaceTB/SmolLM2-135M",
    "offramp compare",
    'offramp generate --prompt "My fellow citizens," --temperature 0.8 --colour',
    "offramp lineage metrics/routing.json",
)
"""Of the whole: before a project is run, and after."""


class AddCommand(Protocol):
    """Adds a subcommand; ``memory`` names what to lower where it runs out of memory."""

    def __call__(
        self,
        name: str,
        run: Run,
        text: str,
        examples: Sequence[str] = (),
        memory: str = "the size of what it reads",
    ) -> argparse.ArgumentParser: ...


class Version(argparse.Action):
    """Prints the version that is installed; it is looked up only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from importlib.metadata import version

        print(f"{parser.prog} {version(parser.prog)}")
        parser.exit()


def make_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands; its result has ``run``, the function, and ``memory``, what to lower.

    Without a subcommand ``run`` shows the help.
    """
    parser = argparse.ArgumentParser(
        prog="offramp", description=DESCRIPTION, epilog=_shown(EXAMPLES), **_AS_WRITTEN
    )
    parser.add_argument("-V", "--version", action=Version, nargs=0, help="show the version and exit")
    parser.set_defaults(run=lambda _: parser.print_help(), memory="nothing")
    commands = parser.add_subparsers(title="commands, in the order of use", metavar="COMMAND")

    def add(
        name: str,
        run: Run,
        text: str,
        examples: Sequence[str] = (),
        memory: str = "the size of what it reads",
    ) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=text, description=text, epilog=_shown(examples), **_AS_WRITTEN
        )
        command.set_defaults(run=run, memory=memory)
        return command

    _add_suitability(add)
    _add_convert(add)
    check = add("params", results.params, "check params.yaml")
    check.add_argument("file", nargs="?", type=Path, help="another file to check")
    _add_generate(add)
    add("compare", results.compare, "every DVC experiment: what was changed for it, perplexity, savings")
    ui = add("ui", results.ui, "open the MLflow UI on the project's runs, on this machine only")
    ui.add_argument("--port", type=int, default=5000, help="default: 5000")
    _add_lineage(add)
    _add_separation(add)
    _add_low_rank(add)
    # no character is a prefix of options here, so that all arguments are passed on
    harness = commands.add_parser(
        "lm-eval",
        help="EleutherAI's lm-evaluation-harness on the routed model; takes its options",
        prefix_chars="\0",
        add_help=False,
    )
    harness.add_argument("arguments", nargs="*")
    harness.set_defaults(run=models.lm_eval, memory="--batch_size")
    add("track", results.track, "log the results on disk to MLflow, if they are not there yet")
    return parser


_AS_WRITTEN: dict[str, Any] = {"formatter_class": argparse.RawDescriptionHelpFormatter}
"""Lines of descriptions and examples stay as they are."""


def _shown(examples: Sequence[str]) -> str | None:
    """What follows the options: commands to copy."""
    return "\n".join(["examples:", *(f"  {example}" for example in examples)]) if examples else None


def _add_lineage(add: AddCommand) -> None:
    lineage = add(
        "lineage",
        results.lineage,
        "walk from a metrics file or artifact to text, parameters and commit, checking it",
        ("offramp lineage metrics/routing.json", "offramp lineage models/lm --all"),
    )
    lineage.add_argument(
        "path", nargs="?", type=Path, help="a stage's output or an artifact folder (metrics/routing.json)"
    )
    lineage.add_argument(
        "--all", action="store_true", help="show all parameters, not only those that are not the defaults"
    )
    lineage.add_argument("--json", action="store_true", help="print JSON")


def _add_separation(add: AddCommand) -> None:
    separation = add(
        "separation",
        measures.separation,
        "how signals tell easy from hard tokens of a states artifact, with intervals",
        ("offramp separation", "offramp separation states/calibration --exit 0 --json"),
    )
    separation.add_argument("states", nargs="?", type=Path, help="default: states/test")
    separation.add_argument("--exit", type=int, default=0, help="default: 0")
    separation.add_argument(
        "--draws", type=int, default=1000, help="bootstrap draws of sequences behind every interval (1000)"
    )
    separation.add_argument(
        "--json", action="store_true", help="print JSON: also histogram, quantiles, risk-coverage, subsets"
    )


def _add_low_rank(add: AddCommand) -> None:
    low_rank = add(
        "low-rank",
        measures.low_rank,
        "what low-rank readouts keep of an exit's logits, signals and separation, by rank",
        ("offramp low-rank", "offramp low-rank --ranks 8 16 32 --tokens 5000"),
        "--tokens",
    )
    low_rank.add_argument("states", nargs="?", type=Path, help="measured on (states/test)")
    low_rank.add_argument("--fit", type=Path, help="approximated on (states/calibration)")
    low_rank.add_argument("--exit", type=int, default=0, help="default: 0")
    low_rank.add_argument(
        "--ranks", type=int, nargs="+", default=[1, 2, 5, 10, 20, 32, 64], help="default: 1 2 5 10 20 32 64"
    )
    low_rank.add_argument("--tokens", type=int, default=20_000, help="evenly spaced tokens measured (20000)")
    low_rank.add_argument("--json", action="store_true", help="print JSON")


def _add_generate(add: AddCommand) -> None:
    generate = add(
        "generate",
        models.generate,
        "continue a prompt; who leaves early is what params.yaml says",
        (
            'offramp generate --prompt "My fellow citizens," --temperature 0.8 --top-p 0.9 --colour',
            'offramp generate --prompt "My fellow citizens," --temperature 0.8 --threshold 0.7 --stats',
            'offramp generate --prompt "My fellow citizens," --speculate --stats',
        ),
        "--tokens or the prompt",
    )
    generate.add_argument("--prompt", required=True, help="text to continue")
    generate.add_argument("--tokens", type=_count, default=64, help="most new tokens (64)")
    generate.add_argument(
        "--threshold",
        type=float,
        nargs="+",
        help="another threshold than params.yaml's, 0 to 1, or one per exit",
    )
    generate.add_argument("--full", action="store_true", help="full depth: nobody leaves")
    generate.add_argument(
        "--route-prompt",
        action="store_true",
        help="let the prompt's tokens leave early too, as in evaluation",
    )
    generate.add_argument(
        "--speculate",
        type=_drafting_exit,
        nargs="?",
        const=models.BEST,
        metavar="EXIT",
        help="this exit, or the one that turns out best, drafts, full depth verifies: its tokens, sooner",
    )
    generate.add_argument("--draft", type=_count, help="most tokens of a draft (4)")
    generate.add_argument(
        "--temperature",
        type=float,
        help="sample, 0.8 for instance, instead of taking the likeliest token, which small models repeat",
    )
    generate.add_argument(
        "--top-p", type=float, help="sample from the fewest tokens with this probability (1)"
    )
    generate.add_argument("--seed", type=int, help="of the sampling (0)")
    generate.add_argument(
        "--colour",
        "--color",
        action="store_true",
        help="colour every token by the exit that predicted it",
    )
    generate.add_argument(
        "--stats", action="store_true", help="then print depth used, tokens/s and speed against full depth"
    )


def _add_suitability(add: AddCommand) -> None:
    suitability = add(
        "suitability",
        measures.suitability,
        "whether early exit is worth it: agreement, what is attainable, break-even and advice",
        (
            "offramp suitability --model HuggingFaceTB/SmolLM2-135M",
            "offramp suitability --model models/checkpoint --text texts/ --exits-after 10 20",
            "offramp suitability",
        ),
        "--batch-size, --tokens or --window",
    )
    suitability.add_argument(
        "--states", type=Path, help="of the project's model (states/test, else states/calibration)"
    )
    suitability.add_argument(
        "--model",
        help="instead of the project's, a checkpoint: a folder, one of trained exits (models/lm) too, or a "
        "name on the Hugging Face hub",
    )
    suitability.add_argument("--gguf-file", help="file within it, for weights in the GGUF format")
    suitability.add_argument("--revision", help="commit, branch or tag on the hub")
    suitability.add_argument(
        "--exits-after",
        type=int,
        nargs="+",
        metavar="LAYERS",
        help="of --model: layers after which an exit would stand (every quarter of the depth)",
    )
    suitability.add_argument(
        "--text",
        type=Path,
        nargs="+",
        help="of --model: files of UTF-8 text like that to be run, or folders of *.txt, each file a document "
        "(State of the Union addresses, unless exits were trained)",
    )
    suitability.add_argument("--window", type=_count, help="of --model: tokens per sequence (128)")
    suitability.add_argument(
        "--out", type=Path, help="of --model: folder for suitability.json and .html (suitability/NAME)"
    )
    suitability.add_argument(
        "--tokens",
        type=_count,
        help="most tokens that are run: of --model two thirds to fit exits, a third to measure (30000), else "
        "all to measure (16384)",
    )
    suitability.add_argument(
        "--signal",
        choices=LOOKS_AT,
        default=STATE,
        help="what is asked: a classifier of the state, or a signal that needs a readout (state)",
    )
    suitability.add_argument("--rounds", type=_count, help="batches timed (9)")
    suitability.add_argument(
        "--batch-size",
        type=_count,
        help="sequences of a timed batch (1 with --model, else routing.batch_size)",
    )
    suitability.add_argument("--json", action="store_true", help="print JSON")


def _add_convert(add: AddCommand) -> None:
    convert = add(
        "convert",
        models.convert,
        "turn a GGUF file into a checkpoint folder that loads in a second",
        ("offramp convert model-q8_0.gguf models/checkpoint",),
    )
    convert.add_argument("gguf", type=Path, help="the GGUF file")
    convert.add_argument("out", type=Path, help="the folder to write (model.name_or_path)")


def _drafting_exit(value: str) -> int | str:
    return value if value == models.BEST else int(value)


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: give at least 1")
    return value
