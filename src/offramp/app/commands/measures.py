"""Commands that measure cached states or a model and print a table."""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp.app.commands.options import check_exit, project_folder, refuse_idle
from offramp.errors import UserError

if TYPE_CHECKING:
    from offramp.analysis.suitability import Subject
    from offramp.exits.store import Exits
    from offramp.states.store import States


def separation(options: argparse.Namespace) -> int:
    """Print how signals separate easy from hard tokens of a states artifact, and how an exit's losses lie."""
    from rich.console import Console

    from offramp.analysis.learned import fitted_on
    from offramp.analysis.separation import separation, signals_of
    from offramp.artifacts.artifact import open_artifact
    from offramp.machine.device import setup
    from offramp.report.tables import separation_sentence, separation_table
    from offramp.states.store import States

    setup("cpu", os.cpu_count() or 1)
    root = project_folder()
    states = States(open_artifact(options.states or root / "states/test", "states"))
    check_exit(options.exit, states.num_exits)
    exits = _exits_of(states, root)
    measured = separation(states, options.exit, signals_of(states, options.exit, exits), options.draws)
    if options.json:
        print(json.dumps(measured, indent=2))
    else:
        console = Console(width=160, highlight=False)
        console.print(separation_table(measured))
        seen = exits is not None and fitted_on(exits, states)
        console.print(separation_sentence(measured, seen), soft_wrap=True)
    return 0


def low_rank(options: argparse.Namespace) -> int:
    """Print what low-rank readouts keep of an exit's logits and signals."""
    from rich.console import Console
    from tqdm import tqdm

    from offramp.analysis.learned import learned_separation
    from offramp.analysis.low_rank import VARIANTS, sweep_states
    from offramp.artifacts.artifact import open_artifact
    from offramp.machine.device import setup
    from offramp.report.tables import low_rank_sentence, low_rank_table
    from offramp.states.store import States

    setup("cpu", os.cpu_count() or 1)
    root, exit = project_folder(), options.exit
    paths = (options.fit or root / "states/calibration", options.states or root / "states/test")
    fit, measured = (States(open_artifact(path, "states")) for path in paths)
    check_exit(exit, measured.num_exits)
    rows = []
    for variant in tqdm(VARIANTS, desc="low rank", unit="variant", disable=None, leave=False):
        rows += sweep_states(fit, measured, exit, options.ranks, options.tokens, [variant])
    exits = _exits_of(measured, root) if exit < measured.num_exits - 1 else None
    learned = learned_separation(measured, exit, exits, options.tokens) if exits else None
    if options.json:
        print(json.dumps({"ranks": rows, "learned": learned and asdict(learned)}, indent=2))
    else:
        console = Console(width=160, highlight=False)
        console.print(low_rank_table(rows, learned))
        console.print(low_rank_sentence(rows, learned), soft_wrap=True)
    return 0


def _exits_of(states: States, root: Path) -> Exits | None:
    """The project's trained exits; None where it has none, or none of the model that these states are of."""
    from offramp.artifacts.artifact import open_artifact
    from offramp.exits.store import Exits

    if not (root / "models/exits").is_dir():
        return None
    exits = open_artifact(root / "models/exits", "exits")
    return Exits(exits) if exits.meta["lm"] == states.artifact.inputs.get("lm") else None


def suitability(options: argparse.Namespace) -> int:
    """Print whether early exit is worth it, for the project's model or for a checkpoint as it is.

    Of a checkpoint JSON and a page are written too.
    """
    from rich.console import Console

    from offramp.analysis.suitability import assess
    from offramp.report.attainable import Bars
    from offramp.report.suitability import table, write
    from offramp.results.suitability import CheckpointSuitability

    checkpoint_only = ("exits_after", "text", "gguf_file", "revision", "window", "out")
    refuse_idle(
        options,
        options.model is None,
        checkpoint_only,
        "without --model the project's own model is measured, on its states",
    )
    refuse_idle(options, options.model is not None, ("states",), "--model is measured on --text")
    out = None if options.model is None else _writable(options.out or _folder_of(options.model))
    subject = _project(options) if options.model is None else _checkpoint(options)
    subject.looks_at = options.signal
    result = assess(subject)
    if out is not None:
        assert isinstance(result, CheckpointSuitability)
        write(result, out)
    if options.json:
        print(json.dumps(result.to_json(), indent=2))
        return 0
    console = Console(width=160)
    console.print(table(result))
    console.print(Bars(result))
    said = (result.advice.sentence, result.advice.clock, result.advice.propagation)
    console.print(*said, soft_wrap=True, highlight=False)
    if out is not None:
        console.print(f"Written: {out / 'suitability.json'}, {out / 'suitability.html'}", soft_wrap=True)
    return 0


def _project(options: argparse.Namespace) -> Subject:
    """The project's model, on its states."""
    from offramp.analysis.suitability import of_states
    from offramp.app.project import open_project
    from offramp.artifacts.artifact import open_artifact

    root = project_folder()
    project, states = open_project(root), root / "states"
    path = options.states or states / ("test" if (states / "test").is_dir() else "calibration")
    opened = open_artifact(path, "states", inputs={"data": project.data, "lm": project.lm})
    settings, hidden = project.params.routing, project.params.exits.hidden
    sizes = _given(options, "tokens", "rounds", "batch_size")
    return of_states(project.data, project.lm, project.model, opened, settings, hidden, **sizes)


def _checkpoint(options: argparse.Namespace) -> Subject:
    """The checkpoint that was named, or the model of an artifact whose exits were trained."""
    from offramp.analysis.checkpoint import is_trained, of_checkpoint, of_trained
    from offramp.checkpoints.checkpoint import Checkpoint
    from offramp.machine.device import setup

    class Named(Checkpoint):
        """It begins messages with the option that named it."""

        def __str__(self) -> str:
            return f"--model {self.name_or_path}"

    folder = Path(options.model)
    given = _given(options, "text", "window", "tokens", "rounds", "batch_size")
    threads = os.cpu_count() or 1
    if is_trained(folder):
        trained = "the exits are those of the model in --model"
        refuse_idle(options, True, ("exits_after", "gguf_file", "revision"), trained)
        return of_trained(folder, setup("auto", threads), **given)
    checkpoint = Named(options.model, options.gguf_file, options.revision)
    if checkpoint.may_be_on_hub and not options.revision and "/" in options.model and folder.parent.is_dir():
        raise UserError(
            f"--model {options.model}: no such folder in {folder.parent}/, which is one here; correct the "
            "path, or give --revision main to fetch what has that name on the hub"
        )
    given |= _given(options, "exits_after")
    return of_checkpoint(checkpoint, setup("auto", threads), **given)


def _given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those of the options that were given."""
    return {name: value for name in names if (value := getattr(options, name)) is not None}


def _folder_of(model: str) -> Path:
    return Path("suitability", Path(model).resolve().name)


def _writable(folder: Path) -> Path:
    """The folder, which may yet have to be made; UserError where nothing can be written there."""
    present = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not present.is_dir() or not os.access(present, os.W_OK):
        raise UserError(f"--out {folder}: nothing can be written to {present}; give another folder")
    return folder
