"""Logging a finished pipeline to MLflow: one run for the whole, one for each stage.

Everything is read from files (metrics, manifests, dvc.lock) after the stages have ended, so a stage that DVC
took from its cache still has its run, and no trouble with tracking can reach a training. The pipeline's run
carries all parameters and headline metrics, because those runs are what MLflow's compare pages show. A stage
run is made once for each entry of dvc.lock; later pipeline runs that reuse the stage name it in their tag
``offramp.stage_run.<stage>``. A stage that logged while it ran (``tracking.live``) keeps that run, which is
only completed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from offramp.errors import UserError
from offramp.params import read_params
from offramp.results.pretraining import Pretraining
from offramp.results.routing import Routing, Timing
from offramp.results.shape import exit_key
from offramp.results.states import Collected
from offramp.tracking.git import changed_files, last_commit
from offramp.tracking.live_runs import close_left_runs, live_run_of
from offramp.tracking.recorded import (
    MADE,
    Stage,
    artifact_name,
    digest,
    flatten,
    made_with_tags,
    read_manifest,
    read_stages,
)
from offramp.tracking.series import Point, numbers, read_points
from offramp.tracking.store import (
    PIPELINE,
    ROLE,
    STAGE,
    Dataset,
    RunRecord,
    Store,
    StoreError,
    is_server,
    open_store,
    user_name,
)

CODE = ("src", "pipeline", "dvc.yaml")
CONTEXT = {"pretrain": "training", "train_exits": "training"}
"""What a stage uses its inputs for, in MLflow's words; the others only evaluate."""
HEADLINE = (Routing.path, Timing.path)
"""Files whose numbers stand on the run of the whole, too."""


def track(root: Path, note: str | None = None) -> bool:
    """Log the pipeline as it lies under ``root``, described by ``note``; whether MLflow has it now.

    A store that cannot be reached or written is a warning on stderr and False; nothing on disk depends on it.
    Raises UserError if no stage has run yet.
    """
    stages = read_stages(root)
    if not stages:
        raise UserError("nothing to track: no stage has left results yet; run `dvc repro` first")
    unrecorded = [stage.name for stage in stages if not stage.locked]
    if unrecorded:
        _warn(
            f"dvc.lock does not describe the results of {', '.join(unrecorded)} (run without DVC?); their "
            "runs are identified by the metrics on disk. `dvc repro` records parameters, code and inputs too."
        )
    pipeline = pipeline_record(root, stages, note)
    try:
        with open_store(root) as store:
            close_left_runs(store, root)
            run_id, new = _log(store, root, pipeline, stages)
            page = f"/#/experiments/{store.experiment_id}/runs"
            where = (
                store.uri + page
                if is_server(store.uri)
                else f"`offramp ui`, then http://127.0.0.1:5000{page}"
            )
    except StoreError as error:
        run_id = None
        _warn(
            f"not logged to MLflow: {error}\n"
            "Nothing is lost: every metric is on disk, in metrics/. To log them once the store works, or in "
            "another one (MLFLOW_TRACKING_URI): `offramp track`"
        )
    if run_id is None:
        return False
    print(
        f'MLflow run "{pipeline.name}" '
        f"{run_id}{'' if new else ' already has these results; nothing was logged'}"
    )
    print(f"To compare runs: {where}\n(choose Model training at the top left, tick runs, Compare)")
    return True


def pipeline_record(root: Path, stages: list[Stage], note: str | None) -> RunRecord:
    """The run of the whole: all of params.yaml, the headline metrics, every artifact's digest, the report."""
    experiment = os.environ.get("DVC_EXP_NAME")
    head = last_commit(root)
    key = digest([{stage.name: stage.hash for stage in stages}, experiment])
    points, dropped = read_points(root, HEADLINE)
    points += _perplexities(root)
    tags = {ROLE: PIPELINE, "offramp.key": key, **common_tags(root)}
    tags |= {f"dvc.stage.{stage.name}": stage.hash for stage in stages}
    artifacts = _manifests(root, [out for stage in stages for out in stage.outs])
    for path, manifest in artifacts.items():
        tags[f"artifact.{artifact_name(manifest['kind'], Path(path))}.digest"] = manifest["digest"]
    tags |= made_with_tags(artifacts.values())
    if note:
        tags["mlflow.note.content"] = note
    return RunRecord(
        name=experiment or (head.hash[:7] if head else "no commit"),
        tags=tags | _dropped_tag(dropped),
        params=flatten(read_params(root / "params.yaml").model_dump(mode="json")),
        points=points,
        files=[(root / "report", "report")] if (root / "report" / "index.html").is_file() else [],
    )


def stage_record(root: Path, stage: Stage) -> RunRecord:
    """The run of one stage: parameters it declares, metrics and curves, digests of inputs and outputs."""
    metrics = [root / out for out in stage.outs if (root / out).is_file()]
    points, dropped = read_points(root, stage.outs)
    inputs, outputs = _manifests(root, stage.deps), _manifests(root, stage.outs)
    tags = {
        ROLE: STAGE,
        "offramp.stage": stage.name,
        f"dvc.stage.{stage.name}": stage.hash,
        **common_tags(root),
    }
    for role, manifests in (("input", inputs), ("output", outputs)):
        for path, manifest in manifests.items():
            name = artifact_name(manifest["kind"], Path(path))
            tags[f"artifact.{name}.digest"] = tags[f"{role}.{name}.digest"] = manifest["digest"]
            if role == "output":
                tags[f"{MADE}{manifest['digest']}"] = name
    tags |= made_with_tags(outputs.values())
    datasets = [
        Dataset(
            artifact_name(manifest["kind"], Path(path)),
            manifest["digest"],
            path,
            CONTEXT.get(stage.name, "eval"),
        )
        for path, manifest in inputs.items()
    ]
    files = [(file, "plots" if file.suffix == ".csv" else "metrics") for file in metrics]
    return RunRecord(stage.name, tags | _dropped_tag(dropped), stage.params, points, datasets, files)


def _log(store: Store, root: Path, pipeline: RunRecord, stages: list[Stage]) -> tuple[str, bool]:
    """Log what the store does not have yet; the pipeline run's id and whether it is new."""
    key = {ROLE: PIPELINE, "offramp.key": pipeline.tags["offramp.key"]}
    if done := store.find(key):
        return done[0].info.run_id, False
    unfinished = store.find(key, finished=False)
    with store.run(pipeline, reopen=unfinished[0].info.run_id if unfinished else None) as run_id:
        links = {}
        for stage in stages:
            links[f"offramp.stage_run.{stage.name}"] = _stage_run(store, root, stage, run_id)
        store.set_tags(run_id, links)
    return run_id, True


def _stage_run(store: Store, root: Path, stage: Stage, parent: str) -> str:
    key = {ROLE: STAGE, f"dvc.stage.{stage.name}": stage.hash}
    if done := store.find(key):
        return done[0].info.run_id
    for broken in store.find(key, finished=False, limit=100):  # a half-logged curve cannot be continued
        store.delete(broken.info.run_id)
    record = stage_record(root, stage)
    live = live_run_of(store, record)
    record.tags["mlflow.parentRunId"] = parent
    with store.run(
        record, reopen=live.info.run_id if live else None, ended=live and live.info.end_time
    ) as run_id:
        return run_id


def common_tags(root: Path) -> dict[str, str]:
    """Who runs this from which commit, and for which of DVC's experiments: tags that every run has."""
    tags = {
        "mlflow.user": user_name(),
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": "dvc.yaml",
    }
    if head := last_commit(root):
        tags["mlflow.source.git.commit"] = head.hash
        tags["git.dirty"] = "true" if changed_files(root, *CODE) else "false"
    for tag, variable in (("dvc.exp_name", "DVC_EXP_NAME"), ("dvc.baseline_rev", "DVC_EXP_BASELINE_REV")):
        if os.environ.get(variable):
            tags[tag] = os.environ[variable]
    return tags


def _manifests(root: Path, paths: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The manifests of those paths that are artifacts."""
    manifests = {path: read_manifest(root / path) for path in paths}
    return {path: manifest for path, manifest in manifests.items() if manifest is not None}


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


def _dropped_tag(dropped: list[str]) -> dict[str, str]:
    if not dropped:
        return {}
    _warn(f"values that are not finite are not logged to MLflow: {', '.join(dropped)}")
    return {"offramp.not_finite": ", ".join(dropped)[:5000]}


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)
