"""Models and states that several studies share: made once, found again as long as what made them is the same.

They are kept below build/, outside DVC, under an identity: parameters, digest of the text, digests of their
inputs, and the digest of the code that made them. A changed line of training code never finds an old model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from offramp.artifacts.artifact import Artifact, open_artifact
from offramp.artifacts.manifest import MANIFEST
from offramp.errors import UserError
from offramp.lineage.code import code_digest

ROOT = Path(__file__).resolve().parents[2]
"""The root of the repository."""


def identity(module: str, **facts: Any) -> dict[str, Any]:
    """What something is known by that ``module`` (``__name__`` of the one that makes it) makes from
    ``facts``.
    """
    return {**facts, "code": code_digest(module, ROOT)}


def find(path: Path, kind: str, identity: dict[str, Any], inputs: dict[str, Artifact]) -> Artifact | None:
    """The artifact at ``path`` if it is whole and was made under this identity from these inputs, else
    None.
    """
    if not (path / MANIFEST).exists():
        return None
    try:
        artifact = open_artifact(path, kind, inputs)
    except UserError:  # damaged, or made from something else: to be made again, like one that is missing
        return None
    return artifact if artifact.params == json.loads(json.dumps(identity)) else None
