"""What every stage script does around its work: validate all parameters, and say plainly what is wrong."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from offramp.machine.entry import run as run_to_exit_code
from offramp.machine.lock import alone
from offramp.params import Declared, load_params, read_stages

MEMORY = "window or corpus"
"""What the memory of a stage that runs no model grows with."""
LOCK = Path("build/stage.lock")
"""Held while a stage of the project runs: dvc may be killed and its stage live on."""


def stage(
    name: str, run: Callable[[Declared, Path], None], shared: bool = False, memory: str = MEMORY
) -> Callable[[], None]:
    """The ``main`` of a stage: ``run(params, root)`` with the parameters dvc.yaml declares for it.

    Where ``runtime.launcher`` starts several processes, all of them run a ``shared`` stage and the first
    alone any other. ``memory`` names the parameters to lower where it runs out of memory. No two stages of a
    project run at once.
    """

    def main() -> None:
        first = os.environ.get("RANK", "0") == "0"
        if not shared and not first:
            return
        logging.basicConfig(level=logging.INFO, format=f"{name}: %(message)s", stream=sys.stderr)
        root = Path(".")

        def work() -> None:
            params = load_params(name, root)
            if not first:
                run(params, root)
                return
            logging.info(place(name, read_stages(root)))
            with alone(root / LOCK, f"stage {name}"):
                run(params, root)

        code = run_to_exit_code(work, f"stage {name}", memory, "`dvc repro` begins this stage again")
        if code:
            sys.exit(code)

    return main


def place(name: str, stages: Mapping[str, Mapping[str, Any]]) -> str:
    """Where a stage stands among those of dvc.yaml, what it does, and what comes after it, in a line.

    Stages run in the order of dvc.yaml; ``dvc repro`` skips those that have nothing new to do.
    """
    names = list(stages)
    number = names.index(name) + 1
    after = f"then {names[number]}" if number < len(names) else "the last"
    return f"stage {number} of {len(names)}: {stages[name]['desc']} ({after})"
