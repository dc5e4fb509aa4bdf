"""The pipeline run with other parameters, in a clone of its own, so that this checkout keeps its results."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from benchmarks.measure import ROOT, Skipped
from offramp.params import read_stages

FOLDER = ROOT / ".benchmarks"
STAGES: tuple[str, ...] = tuple(read_stages(ROOT))
"""All stages, in the order in which they run; the last one tracks."""
RUN_STAGES = """import sys
from importlib import import_module as load
for name in sys.argv[1:]: load(f"pipeline.{name}").main()
"""
"""A program that runs the stages that its arguments name: without DVC, and importing torch once."""


def reproduced(name: str, settings: Mapping[str, Any], stage: str) -> Path:
    """A clone in .benchmarks/NAME in which the pipeline has run up to ``stage``.

    ``settings`` (dotted names) are those parameters of its params.yaml that differ from this checkout's,
    whose DVC cache it shares: what was computed once is not computed again. Raises what ``cloned`` raises.
    """
    clone = cloned(name)
    _run(clone, sys.executable, "-m", "dvc", "cache", "dir", "--local", str(ROOT / ".dvc/cache"))
    set_params(clone / "params.yaml", settings)
    print(f"{name}: dvc repro {stage} in {clone.relative_to(ROOT)}", flush=True)
    _run(clone, sys.executable, "-m", "dvc", "repro", "-q", stage)
    return clone


def cloned(name: str) -> Path:
    """A clone in .benchmarks/NAME with the code that is committed in this checkout.

    Raises Skipped where the pipeline's code has changes that are not committed, RuntimeError where a command
    fails.
    """
    code = ("src", "pipeline", "dvc.yaml", "params.yaml")
    if changed := _run(ROOT, "git", "status", "--porcelain", "--", *code).strip():
        raise Skipped(f"its models are made by committed code; commit or undo first:\n{changed}")
    clone = FOLDER / name
    if not clone.exists():
        _run(ROOT, "git", "clone", "--quiet", str(ROOT), str(clone))
    _run(clone, "git", "fetch", "--quiet", str(ROOT), "HEAD")
    _run(clone, "git", "reset", "--quiet", "--hard", "FETCH_HEAD")
    return clone


def set_params(path: Path, settings: Mapping[str, Any]) -> None:
    """Set parameters (dotted names) in a params.yaml and keep its comments.

    Raises KeyError where a section is missing.
    """
    yaml = YAML()
    values = yaml.load(path)
    for name, value in settings.items():
        *sections, key = name.split(".")
        place = values
        for section in sections:
            place = place[section]
        place[key] = value
    yaml.dump(values, path)


def environment(root: Path) -> dict[str, str]:
    """The environment for commands of the checkout ``root`` with this Python."""
    return {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(root / "src"),
        "DVC_NO_ANALYTICS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }


def _run(folder: Path, *command: str) -> str:
    process = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command[:5])} failed:\n{(process.stdout + process.stderr)[-2000:]}")
    return process.stdout
