"""``python -m studies``: what there is; ``python -m studies NAME ...``: run a study, or one of the tools that
serve all of them.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from offramp.machine.entry import run as run_to_exit_code
from studies.common import run
from studies.common.study import HOME, studies, study_of

TOOLS = {
    "all": ("studies.common.every", "run every study on one text"),
    "checkpoint": (
        "studies.checkpoint.__main__",
        "what early exit gives a real checkpoint: trainings of hours, or minutes on a GPU",
    ),
    "code": ("studies.common.code", "write the digests of the code that every study depends on"),
    "ledger": ("studies.ledger.ledger", "write claims.csv and questions.csv: a verdict on every claim"),
    "findings": ("studies.findings.findings", "write docs/studies: a page per report, and an index"),
    "relock": (
        "studies.common.relock",
        "renew the lock of studies whose results two random seeds give again",
    ),
}
"""Module, whose ``main(arguments)`` runs it, and what it does."""


def main(arguments: list[str], home: Path = HOME) -> None:
    """Run what the first argument names; a study below ``home``. UserError for an unknown name."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print(overview())
        return
    name, *rest = arguments
    if name in TOOLS:
        import_module(TOOLS[name][0]).main(rest)
    else:
        run.main(study_of(name, home), rest, home)


def overview() -> str:
    """Every study with its question, and the tools."""
    lines = ["python -m studies NAME [--corpus TEXT] ...", "", "Studies:"]
    lines += [f"  {name:<28} {study.about.asks}" for name, study in studies().items()]
    return "\n".join([*lines, "", "Tools:", *(f"  {name:<28} {text}" for name, (_, text) in TOOLS.items())])


if __name__ == "__main__":
    again = "the same command begins again what was not finished"
    sys.exit(run_to_exit_code(lambda: main(sys.argv[1:]), "studies", "the study's settings", again))
