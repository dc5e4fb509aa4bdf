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
from offramp.tracking.address import experiment_name, is_server, store_root
from offramp.tracking.git import (
    branch,
    changed_files,
    commit_page,
    folder_in_repository,
    last_commit,
    web_address,
)
from offramp.tracking.live_runs import close_left_runs, live_run_of
from offramp.tracking.logged_model import TAG as TAG_OF_MODEL
from offramp.tracking.logged_model import log_model
from offramp.tracking.origin import CODE
from offramp.tracking.recorded import (
    MADE,
    Stage,
    artifact_name,
    made_with_tags,
    read_manifest,
    read_stages,
)
from offramp.tracking.series import read_points
from offramp.tracking.store import (
    PIPELINE,
    ROLE,
    STAGE,
    Dataset,
    RunRecord,
    Store,
    StoreError,
    open_store,
    user_name,
)
from offramp.tracking.view import LOCAL, STATE, TAG, address, page, report_page
from offramp.tracking.whole import stage_times, whole_record

CONTEXT = {"pretrain": "training", "train_exits": "training"}
"""What a stage uses its inputs for, in MLflow's words; the others only evaluate."""
EXPERIMENTS = "dvc.exp_name"
"""The tag with the names of DVC's experiments."""
UNUSED = ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID")
"""Variables of MLflow's that have no effect on what is logged."""


def track(root: Path, note: str | None = None, with_model: bool = False) -> bool:
    """Log the pipeline as it lies under ``root``, described by ``note``; whether MLflow has it now.

    With its model, if ``with_model``, which is then as an MLflow model in the store.

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
    for variable in UNUSED:
        if os.environ.get(variable):
            _warn(
                f"{variable} is set and not used: a result has a run of its own, in {experiment_name(root)}"
            )
    pipeline = pipeline_record(root, stages)
    try:
        with open_store(root) as store:
            close_left_runs(store, root)
            describe_experiment(store, root)
            run_id, new = _log(store, root, pipeline, stages, note)
            model = _model(store, root, run_id, pipeline) if with_model else None
            name = pipeline.name if new else store.get(run_id).info.run_name
    except StoreError as error:
        _warn(
            f"not logged to MLflow: {error}\n"
            "Nothing is lost: every metric is on disk, in metrics/. To log them once the store works, or in "
            "another one (MLFLOW_TRACKING_URI): `offramp track`"
        )
        return False
    print(f'MLflow run "{name}" {run_id}{"" if new else " already has these results; nothing was logged"}')
    if model:
        print(f"its model, {model[1] / 1e6:.1f} MB in the store (tracking.log_model): models:/{model[0]}")
    server = store.uri if is_server(store.uri) else LOCAL
    start = "" if is_server(store.uri) else " (`offramp ui` starts it)"
    print(f"Compare runs{start}: {address(server, page(store.experiment_id))}")
    print(f"as charts: {address(server, page(store.experiment_id, charts=True))}")
    return True


def pipeline_record(root: Path, stages: list[Stage]) -> RunRecord:
    """The run of the whole (``offramp.tracking.whole``), with the digests of all artifacts."""
    record, dropped = whole_record(root, stages)
    artifacts = _manifests(root, [out for stage in stages for out in stage.outs])
    for path, manifest in artifacts.items():
        record.tags[f"artifact.{artifact_name(manifest['kind'], Path(path))}.digest"] = manifest["digest"]
    record.tags |= common_tags(root) | made_with_tags(artifacts.values())
    if dropped:  # the runs of the stages say so
        record.tags |= _not_finite(dropped)
    return record


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


def _log(
    store: Store, root: Path, pipeline: RunRecord, stages: list[Stage], note: str | None
) -> tuple[str, bool]:
    """Log what the store does not have yet; the pipeline run's id and whether it is new."""
    key = {ROLE: PIPELINE, "offramp.key": pipeline.tags["offramp.key"]}
    if done := store.find(key):
        run_id = done[0].info.run_id
        store.set_tags(run_id, _experiments(done[0], pipeline) | _links(store, root, stages, run_id))
        return run_id, False
    unfinished = store.find(key, finished=False)
    with store.run(pipeline, reopen=unfinished[0].info.run_id if unfinished else None) as run_id:
        tags = _links(store, root, stages, run_id)
        if note:
            tags["mlflow.note.content"] = "\n\n".join([note, *_pages(store, root, run_id, pipeline)])
        store.set_tags(run_id, tags)
    return run_id, True


def _pages(store: Store, root: Path, run_id: str, pipeline: RunRecord) -> list[str]:
    """A line of links, where there are any: the report, and the commit, which the page of a run has not."""
    pages = {"The report": report_page(store.experiment_id, run_id)} if pipeline.files else {}
    if page_of_commit := commit_page(root):
        pages["The commit"] = page_of_commit
    return [" | ".join(f"[{name}]({address})" for name, address in pages.items())] if pages else []


def _model(store: Store, root: Path, run_id: str, pipeline: RunRecord) -> tuple[str, int] | None:
    """Give the run its model, unless it has it already; the model's id and bytes if it was given now."""
    if TAG_OF_MODEL in store.get(run_id).data.tags:
        return None
    logged = log_model(store, root, run_id, pipeline)
    if logged:
        store.set_tags(run_id, {TAG_OF_MODEL: logged[0]})
    return logged


def _links(store: Store, root: Path, stages: list[Stage], run_id: str) -> dict[str, str]:
    """The tags that name the stages' runs; one that MLflow does not have, or not any more, is logged."""
    times = stage_times(root, stages)
    return {
        f"offramp.stage_run.{stage.name}": _stage_run(store, root, stage, run_id, times.get(stage.name))
        for stage in stages
    }


def _experiments(run: Any, pipeline: RunRecord) -> dict[str, str]:
    """The tag with the names of all of DVC's experiments that came to this result."""
    names = [name for name in run.data.tags.get(EXPERIMENTS, "").split(", ") if name]
    name = pipeline.tags.get(EXPERIMENTS)
    return {EXPERIMENTS: ", ".join([*names, name])} if name and name not in names else {}


def describe_experiment(store: Store, root: Path) -> None:
    """Say what the experiment is, and leave the view in which its runs are shown, where nobody has yet."""
    store.describe(
        {
            "mlflow.note.content": (
                f"Early-exit language models of the project {store_root(root).name}. A run is one result of "
                "its pipeline: what is compared has plain names, the rest stands under diagnostics/, train/ "
                "and curve/. The runs below a run are the pipeline's stages.\n\n"
                f"[Table]({page(store.experiment_id)}) | [Charts]({page(store.experiment_id, charts=True)})"
            ),
            "mlflow.experimentKind": "custom_model_development",
            TAG: STATE,
        }
    )


def _stage_run(store: Store, root: Path, stage: Stage, parent: str, times: tuple[int, int] | None) -> str:
    key = {ROLE: STAGE, f"dvc.stage.{stage.name}": stage.hash}
    if done := store.find(key):
        return done[0].info.run_id
    for broken in store.find(key, finished=False, limit=100):  # a half-logged curve cannot be continued
        store.delete(broken.info.run_id)
    record = stage_record(root, stage)
    if times:
        record.begun, record.ended = times
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
        if repository := web_address(root):
            # the UI's table makes the commit a link only of a run that says so, in the way of MLflow Projects
            tags["mlflow.source.type"] = "PROJECT"
            tags["mlflow.source.name"] = f"{repository}#{folder_in_repository(root)}dvc.yaml"
            tags["mlflow.source.git.repoURL"] = repository
            if name := branch(root):
                tags["mlflow.source.git.branch"] = name
        tags["git.dirty"] = "true" if changed_files(root, *CODE) else "false"
    for tag, variable in (("dvc.exp_name", "DVC_EXP_NAME"), ("dvc.baseline_rev", "DVC_EXP_BASELINE_REV")):
        if os.environ.get(variable):
            tags[tag] = os.environ[variable]
    return tags


def _manifests(root: Path, paths: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The manifests of those paths that are artifacts."""
    manifests = {path: read_manifest(root / path) for path in paths}
    return {path: manifest for path, manifest in manifests.items() if manifest is not None}


def _dropped_tag(dropped: list[str]) -> dict[str, str]:
    if not dropped:
        return {}
    _warn(f"values that are not finite are not logged to MLflow: {', '.join(dropped)}")
    return _not_finite(dropped)


def _not_finite(dropped: list[str]) -> dict[str, str]:
    return {"offramp.not_finite": ", ".join(dropped)[:5000]}


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)
