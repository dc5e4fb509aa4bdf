"""What every stage script does around its work: validate all parameters, and say plainly what is wrong."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path

from offramp.errors import UserError, memory_for
from offramp.params import Declared, load_params

MEMORY = "window or corpus"
"""What the memory of a stage that runs no model grows with."""


def stage(
    name: str, run: Callable[[Declared, Path], None], shared: bool = False, memory: str = MEMORY
) -> Callable[[], None]:
    """The ``main`` of a stage: ``run(params, root)`` with the parameters dvc.yaml declares for it.

    Where ``runtime.launcher`` starts several processes, all of them run a ``shared`` stage and the first
    alone any other. ``memory`` names the parameters to lower where it runs out of memory.
    """

    def main() -> None:
        if not shared and os.environ.get("RANK", "0") != "0":
            return
        logging.basicConfig(level=logging.INFO, format=f"{name}: %(message)s", stream=sys.stderr)
        root = Path(".")
        try:
            params = load_params(name, root)
            with memory_for(f"stage {name}", memory):
                run(params, root)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    return main
