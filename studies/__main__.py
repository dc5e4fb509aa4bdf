"""``python -m pipeline.studies STUDY ...``: run a study by name, or say which there are."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from offramp.errors import UserError

NOT_STUDIES = ("code", "findings", "ledger", "zoo")


def studies() -> list[str]:
    """The names of all studies."""
    return sorted(
        path.stem for path in Path(__file__).parent.glob("[!_]*.py") if path.stem not in NOT_STUDIES
    )


def run(name: str) -> None:
    """The command line of study ``name``. UserError for one that does not exist."""
    if name not in studies():
        raise UserError(f"study = {name!r} does not exist; choose from {', '.join(studies())}")
    import_module(f"pipeline.studies.{name}").main()


def main() -> None:
    try:
        run(sys.argv.pop(1) if len(sys.argv) > 1 else "")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
