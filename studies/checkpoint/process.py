"""``python -m studies.checkpoint.process RECORD KEY MODULE ...``: run a module as ``python -m`` does, and
write down that it was done.

The process that did the work says so itself: what it did is not lost if the one that started it was killed.
"""

from __future__ import annotations

import resource
import runpy
import sys
import time
from collections.abc import Callable
from pathlib import Path

from offramp.artifacts.files import write_json


def main(arguments: list[str]) -> None:
    """Run the module; no record where it fails."""
    record, key, *command = arguments
    sys.argv = list(command)
    recorded(Path(record), key, lambda: runpy.run_module(command[0], run_name="__main__", alter_sys=True))


def recorded(record: Path, key: str, work: Callable[[], object]) -> None:
    """Do a piece of work, then write its record: ``studies.checkpoint.projects.Done``."""
    resumed = any(Path(".resume").glob("*/snapshot.pt"))
    begun = time.monotonic()
    try:
        work()
    except SystemExit as end:
        if end.code:
            raise
    unit = 1 if sys.platform == "darwin" else 1024
    write_json(
        record,
        {
            "key": key,
            "seconds": round(time.monotonic() - begun, 1),
            "memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9, 2),
            "resumed": resumed,
            "ended": time.strftime("%Y-%m-%d %H:%M"),
        },
    )


if __name__ == "__main__":
    main(sys.argv[1:])
