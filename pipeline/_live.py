"""The name under which MLflow knows what a stage is computing now."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from offramp.artifacts.artifact import Artifact
from offramp.lineage.code import code_digest
from offramp.params import Declared


def run_key(name: str, params: Declared, root: Path, inputs: Mapping[str, Artifact]) -> str:
    """What the outcome of a stage hangs on, in short.

    The machine is no part of it: what is begun again elsewhere is the same run as long as it comes to the
    same values.
    """
    identity = {
        "stage": name,
        "params": params.to_json(),
        "inputs": {path: artifact.digest for path, artifact in inputs.items()},
        "code": code_digest(f"pipeline.{name}", root),
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]
