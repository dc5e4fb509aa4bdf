"""Where a result comes from: commit, DVC's experiment, and the name by which MLflow will know it."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, YAMLError

from offramp.params import OF_NO_RESULT, Params, read_params, with_lists
from offramp.results.routing import Origin
from offramp.tracking.address import experiment_name
from offramp.tracking.git import changed_files, file_at, last_commit
from offramp.tracking.recorded import flatten
from offramp.tracking.store import text

CODE = ("src", "pipeline", "dvc.yaml")
"""What differs from a commit where code or pipeline do."""
CHANGED = 3
"""Most changed parameters in a run's name."""


def origin(root: Path) -> Origin:
    """Of a result that is measured now in ``root``."""
    head = last_commit(root)
    return Origin(
        date=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        commit=head.hash if head else None,
        changed=bool(head and changed_files(root, *CODE)),
        dvc_experiment=os.environ.get("DVC_EXP_NAME"),
        mlflow_experiment=experiment_name(root),
        mlflow_run=run_name(root, read_params(root / "params.yaml")),
    )


def run_name(root: Path, params: Params) -> str:
    """``threshold=0.7, exits.hidden=[] (soapy-roup)``: what differs from the commit, and DVC's name or the
    commit.
    """
    baseline = os.environ.get("DVC_EXP_BASELINE_REV") or "HEAD"
    head = last_commit(root)
    label = os.environ.get("DVC_EXP_NAME") or (head.hash[:7] if head else "no commit")
    before = _flat_yaml(file_at(root, baseline, "params.yaml") or "")
    now = flatten(params.model_dump(mode="json"))
    changed = [
        f"{key}={text(value)}"
        for key, value in now.items()
        if key != "threshold"
        and key.partition(".")[0] not in OF_NO_RESULT
        and key in before
        and before[key] != value
    ]
    more = [f"{len(changed) - CHANGED} more"] if len(changed) > CHANGED else []
    first = f"threshold={text(now['threshold'])}"
    return f"{', '.join([first, *changed[:CHANGED], *more])} ({label})"


def _flat_yaml(content: str) -> dict[str, Any]:
    try:
        values = YAML(typ="safe").load(content)
    except YAMLError:
        return {}
    return with_lists(flatten(values)) if isinstance(values, dict) else {}
