"""What every stage script does around its work: validate all parameters first, and say plainly what is wrong."""

from __future__ import annotations

import csv
import io
import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from offramp.errors import UserError
from offramp.lineage.artifact import write_text
from offramp.params import Declared, load_params


def stage(name: str, run: Callable[[Declared, Path], None]) -> Callable[[], None]:
    """The ``main`` of a stage: ``run(params, root)`` with the parameters dvc.yaml declares for it."""

    def main() -> None:
        logging.basicConfig(level=logging.INFO, format=f"{name}: %(message)s", stream=sys.stderr)
        root = Path(".")
        try:
            run(load_params(name, root), root)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    return main


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as CSV, atomically; None becomes an empty cell."""
    out = io.StringIO()
    writer = csv.DictWriter(out, fieldnames=columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, out.getvalue())
