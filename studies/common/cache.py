"""Intermediate results of the studies: made once, found again as long as what they were made from is the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from offramp.artifacts.artifact import MANIFEST, Artifact, open_artifact
from offramp.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
"""The root of the repository, for params.yaml; what a study makes goes below the folder it is started in."""


def folder(root: Path, corpus: str) -> Path:
    """Where studies keep what is not in git."""
    return root / "build/studies" / corpus


def find(path: Path, kind: str, params: dict[str, Any], inputs: dict[str, Artifact]) -> Artifact | None:
    """The artifact at ``path`` if it is whole and was made with these parameters from these inputs, else None."""
    if not (path / MANIFEST).exists():
        return None
    try:
        found = open_artifact(path, kind, inputs)
    except UserError:  # damaged, or made from something else: to be made again, like one that is missing
        return None
    return found if found.params == json.loads(json.dumps(params)) else None
