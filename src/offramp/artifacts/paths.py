"""Where a relative path of the parameters leads, also in the copy in which DVC runs an experiment."""

from __future__ import annotations

import os
from pathlib import Path


def in_project(path: str | Path, root: Path = Path()) -> Path:
    """``path`` below ``root``, or where nothing is there, below the project that ``root`` is a copy of.

    DVC copies only what git holds (``--temp``, ``--queue``), and names the project in DVC_ROOT. The result
    need not exist.
    """
    below = root / path
    project = os.environ.get("DVC_ROOT")
    if project is None or below.exists():
        return below
    original = Path(project) / path
    return original if original.exists() else below
