"""``python -m studies.checkpoint.work STEP FOLDER [ARM]``: one step of the study, in a process of its own."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path

from offramp.errors import UserError, memory_for
from studies.checkpoint.settings import StudySettings

STEPS = ("look", "precision", "export", "measure")


def main(arguments: list[str]) -> None:
    """Run a step on the settings that the study has written to its folder."""
    step, folder, *arm = arguments
    if step not in STEPS:
        raise UserError(f"step {step!r}: not one of {', '.join(STEPS)}")
    values = json.loads((Path(folder) / "settings.json").read_text())
    device = values.pop("device")
    module = import_module(f"studies.checkpoint.{step}")
    with memory_for(f"step {step}", "batch_size or measured_batch of studies/checkpoint/settings.yaml"):
        module.run(Path(folder), StudySettings.of(values), device, *arm)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
