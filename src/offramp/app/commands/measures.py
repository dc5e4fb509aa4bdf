"""Commands that measure cached states or a model and print a table."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from offramp.app.commands.options import check_exit, refuse_idle
from offramp.errors import UserError


def separation(options: argparse.Namespace) -> int:
    """Print how signals separate easy from hard tokens of a states artifact, and how an exit's losses lie."""
    from rich.console import Console

    from offramp.analysis.separation import separation, signals_of
    from offramp.artifacts.artifact import open_artifact
    from offramp.machine.device import setup
    from offramp.report.tables import separation_table
    from offramp.states.store import States

    setup("cpu", os.cpu_count() or 1)
    states = States(open_artifact(options.states, "states"))
    check_exit(options.exit, states.num_exits)
    measured = separation(states, options.exit, signals_of(states, options.exit), options.draws)
    if options.json:
        print(json.dumps(measured, indent=2))
    else:
        Console(width=160).print(separation_table(measured))
    return 0


def low_rank(options: argparse.Namespace) -> int:
    """Print what low-rank readouts keep of an exit's logits and signals."""
    from rich.console import Console

    from offramp.analysis.low_rank import sweep_states
    from offramp.artifacts.artifact import open_artifact
    from offramp.machine.device import setup
    from offramp.report.tables import low_rank_table
    from offramp.states.store import States

    setup("cpu", os.cpu_count() or 1)
    fit, measured = (States(open_artifact(path, "states")) for path in (options.fit, options.states))
    check_exit(options.exit, measured.num_exits)
    rows = sweep_states(fit, measured, options.exit, options.ranks, options.tokens)
    if options.json:
        print(json.dumps(rows, indent=2))
    else:
        Console(width=160).print(low_rank_table(rows))
    return 0


def suitability(options: argparse.Namespace) -> int:
    """Print whether early exit is worth it, for the project's model or for a checkpoint as it is."""
    from rich.console import Console

    from offramp.analysis.suitability import assess, of_checkpoint, of_states
    from offramp.app.project import open_project
    from offramp.artifacts.artifact import open_artifact
    from offramp.checkpoints.checkpoint import Checkpoint
    from offramp.machine.device import setup
    from offramp.report.suitability import table

    checkpoint_only = ("exits_after", "text", "gguf_file", "revision", "window")
    refuse_idle(
        options,
        options.model is None,
        checkpoint_only,
        "without --model the project's own model is measured, on its states",
    )
    refuse_idle(options, options.model is not None, ("states",), "--model is measured on --text")
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
                "--model needs --exits-after, e.g. --exits-after 10 20, and --text, a file of text like "
                "that to "
                "be run"
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
