"""What MLflow holds after `track`: queried back from a real store."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from offramp.artifacts.artifact import open_artifact
from offramp.errors import UserError
from offramp.report.headline import headline_sentence
from offramp.results.headline import Headline
from offramp.results.routing import Routing
from offramp.tracking.git import commit_page
from offramp.tracking.origin import origin
from offramp.tracking.recorded import dvc_md5, read_stages
from offramp.tracking.tracking import common_tags, track
from offramp.tracking.view import KEY
from offramp.tracking.whole import WARNING
from tests.fixtures.tracked_project import NOTE, dvc_repro, set_param

STAGES = ["prepare", "pretrain", "collect", "sweep", "evaluate", "report"]


WRITTEN_LAST = ("metrics/routing.json", "metrics/timing.json")


def test_one_run_for_the_whole_and_one_for_each_stage(tracked):
    (whole,), stages = tracked.pipelines(), tracked.stages()
    assert len(tracked.runs()) == 1 + len(STAGES)
    assert sorted(stages) == sorted(STAGES)
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=tracked.root, capture_output=True, text=True
    ).stdout.strip()
    assert whole.info.run_name == f"threshold=0.75 ({commit[:7]})"
    for run in (whole, *stages.values()):
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.source.git.commit"] == commit
    for stage in read_stages(tracked.root):
        run = stages[stage.name]
        assert stage.locked
        assert run.data.tags["mlflow.parentRunId"] == whole.info.run_id
        assert whole.data.tags[f"offramp.stage_run.{stage.name}"] == run.info.run_id
        assert (
            whole.data.tags[f"dvc.stage.{stage.name}"]
            == run.data.tags[f"dvc.stage.{stage.name}"]
            == stage.hash
        )
    assert str(tracked.root) in tracked.experiment.artifact_location
    assert whole.info.run_id in tracked.out and "workflowType=machine_learning" in tracked.out


def test_the_run_of_the_whole_can_be_compared_with_others(tracked):
    (whole,) = tracked.pipelines()
    params, metrics = whole.data.params, whole.data.metrics
    assert params["threshold"] == "0.75" and params["model.block_layers"] == "[1, 3]"
    assert params["corpus.hub_name"] == "null" and params["model.tied"] == "true"
    assert len(params) > 60
    expected = {
        "ppl": 20.75,
        "full_ppl": 20.0,
        "wall_saving": 0.12,
        "diagnostics/threshold/exit_0": 0.75,
        "diagnostics/controls/random/ppl": 22.5,
        "diagnostics/interval/ppl_low": 19.5,
        "diagnostics/interval/ppl_high": 22.5,
        "diagnostics/block_1/calibration_ppl": 150.0,
        "diagnostics/exit_0/test_ppl": 28.5,
    }
    assert expected.items() <= metrics.items()
    assert {key for key in metrics if "/" not in key} == set(Headline.model_fields)


def test_curves_stand_on_the_run_that_is_compared(tracked):
    (whole,) = tracked.pipelines()
    assert tracked.history(whole, "train/block_0/train_loss") == [(10, 5.5), (20, 5.0), (30, 4.5)]
    assert tracked.history(whole, "curve/ppl/learned") == [(10, 20.5), (29, 21.0)]


def test_a_run_lasts_as_long_as_its_stages(tracked):
    (whole,), stages = tracked.pipelines(), tracked.stages()
    ended = max((tracked.root / out).stat().st_mtime_ns // 10**6 for out in WRITTEN_LAST)
    assert whole.info.end_time == stages["evaluate"].info.end_time == ended
    assert whole.info.start_time < stages["pretrain"].info.end_time < ended
    assert stages["pretrain"].info.start_time == stages["prepare"].info.end_time


def test_the_text_is_a_dataset_of_the_run(tracked):
    (whole,) = tracked.pipelines()
    (dataset,) = whole.inputs.dataset_inputs
    data = open_artifact(tracked.root / "data", "data")
    assert (dataset.dataset.name, dataset.dataset.digest) == ("sotu", data.digest[:36])


def test_the_experiment_is_described_and_has_a_view_of_few_columns(tracked):
    tags = tracked.experiment.tags
    assert "project" in tags["mlflow.note.content"] and KEY in tags["mlflow.note.content"]
    view = json.loads(tags[f"mlflow.sharedViewState.{KEY}"])
    assert hashlib.sha256(tags[f"mlflow.sharedViewState.{KEY}"].encode()).hexdigest() == KEY
    columns = [column.partition(".`")[2].rstrip("`") for column in view["selectedColumns"]]
    (whole,) = tracked.pipelines()
    # what a person compares lies within a window of 1440 beside MLflow's own panels and the ticks of rows
    compared = columns[: columns.index("attained") + 1]
    assert compared == [
        *("threshold", "pretrain.method", "ppl", "ppl_increase"),
        *("shallow_ratio", "flop_saving", "wall_saving", "attained"),
    ]
    widths = view["columnWidths"]
    left = [*view["columnOrder"][: 1 + len(compared)], "runDateAndNestInfo"]
    assert sum(widths[key] for key in left) <= 745
    assert set(columns) <= whole.data.params.keys() | whole.data.metrics.keys()
    assert f"#/experiments/{tracked.experiment.experiment_id}/runs" in tracked.out
    assert f"viewStateShareKey={KEY}" in tracked.out


def test_stage_runs_hold_what_the_stage_declares_and_made(tracked):
    stages = tracked.stages()
    assert stages["evaluate"].data.params == {"threshold": "0.75"}
    assert (
        "model.width" in stages["pretrain"].data.params and "threshold" not in stages["pretrain"].data.params
    )
    pretrain = stages["pretrain"]
    assert tracked.history(pretrain, "block_0/train_loss") == [(10, 5.5), (20, 5.0), (30, 4.5)]
    assert tracked.history(pretrain, "block_1/train_loss") == [(20, 3.5)]  # an empty cell is no point
    assert pretrain.data.metrics["kept/block_0/calibration_ppl"] == 190.25
    assert pretrain.data.metrics["parameters"] == 12
    assert tracked.history(stages["sweep"], "curve/ppl/learned") == [(10, 20.5), (29, 21.0)]
    assert tracked.history(stages["sweep"], "curve/headroom/random") == [(10, 0.0)]
    names = {file.path for file in tracked.client.list_artifacts(pretrain.info.run_id, "plots")}
    assert names == {"plots/learning_curves.csv"}


def test_what_is_not_finite_is_left_out_and_said(tracked):
    pretrain = tracked.stages()["pretrain"]
    assert tracked.history(pretrain, "block_0/calibration_ppl") == [(10, 210.5), (30, 190.25)]
    assert pretrain.data.tags["offramp.not_finite"] == "block_0/calibration_ppl"
    assert "not finite" in tracked.err


def test_the_report_is_attached_to_the_run_of_the_whole(tracked):
    (whole,) = tracked.pipelines()
    local = tracked.client.download_artifacts(whole.info.run_id, "report")
    assert (Path(local) / "index.html").read_text() == (tracked.root / "report" / "index.html").read_text()
    assert (Path(local) / "figures" / "curve.svg").exists()


def test_from_a_metric_to_the_runs_that_made_its_inputs_and_back(tracked):
    tags = tracked.stages()["evaluate"].data.tags
    lm = open_artifact(tracked.root / "models" / "lm", "lm").digest
    assert tags["input.lm.digest"] == tags["artifact.lm.digest"] == lm
    assert tags["output.routed.digest"] == open_artifact(tracked.root / "routed", "routed").digest
    (maker,) = tracked.runs(f"tags.`output.lm.digest` = '{tags['input.lm.digest']}'")
    assert maker.data.tags["offramp.stage"] == "pretrain"
    (first,) = tracked.runs(f"tags.`output.data.digest` = '{maker.data.tags['input.data.digest']}'")
    assert first.data.tags["offramp.stage"] == "prepare"
    users = {run.data.tags["offramp.stage"] for run in tracked.runs(f"dataset.digest = '{lm[:36]}'")}
    assert users == {"collect", "evaluate"}
    states = tracked.stages()["collect"].data.tags
    assert states["output.states.test.digest"] != states["output.states.calibration.digest"]
    (dataset,) = maker.inputs.dataset_inputs
    assert (dataset.dataset.name, dataset.dataset.digest) == (
        "data",
        maker.data.tags["input.data.digest"][:36],
    )
    assert dataset.tags[0].value == "training"


def test_runs_are_tagged_with_what_computed_their_artifacts(tracked):
    (whole,), stages = tracked.pipelines(), tracked.stages()
    for run in (whole, stages["pretrain"]):
        assert run.data.tags["made_with.torch"] == version("torch")
        assert run.data.tags["made_with.numpy"] == version("numpy")
    assert "made_with.tokenizers" in stages["prepare"].data.tags
    assert "made_with.torch" not in stages["prepare"].data.tags


def test_logging_twice_changes_nothing(project, capsys, runs_of):
    track(project)
    before = {run.info.run_id: run.to_dictionary() for run in runs_of(project).runs()}
    capsys.readouterr()
    assert track(project)
    assert {run.info.run_id: run.to_dictionary() for run in runs_of(project).runs()} == before
    assert "already has these results" in capsys.readouterr().out


def test_an_experiment_links_the_stages_it_shares(project, experiment, monkeypatch, runs_of):
    monkeypatch.delenv("DVC_EXP_NAME")
    track(project)
    shared = runs_of(project).stages()
    monkeypatch.setenv("DVC_EXP_NAME", "gaudy-moose")
    track(experiment)
    logged = runs_of(project)
    second, first = logged.pipelines()
    assert second.info.run_name == "threshold=0.9 (gaudy-moose)"
    assert second.data.tags["dvc.exp_name"] == "gaudy-moose"
    assert second.data.tags["dvc.baseline_rev"] == "0123456789"
    assert (first.data.params["threshold"], second.data.params["threshold"]) == ("0.75", "0.9")
    own = {
        run.data.tags["offramp.stage"]
        for run in logged.runs(f"tags.mlflow.parentRunId = '{second.info.run_id}'")
    }
    assert own == {"evaluate", "report"}
    for name in ("prepare", "pretrain", "collect", "sweep"):
        assert second.data.tags[f"offramp.stage_run.{name}"] == shared[name].info.run_id
    assert not (experiment / "mlartifacts").exists()  # the store is the project's, not the copy's
    # one result is one run, whichever way it was reached
    monkeypatch.setenv("DVC_EXP_NAME", "calm-heron")
    track(experiment)
    again = runs_of(project).pipelines()
    assert {run.info.run_id for run in again} == {second.info.run_id, first.info.run_id}
    names = {run.data.tags.get("dvc.exp_name") for run in again}
    assert names == {None, "gaudy-moose, calm-heron"}


def test_an_interrupted_logging_is_continued(project, capsys, runs_of):
    (project / "mlartifacts").write_text("in the way of the artifacts' folder")
    assert not track(project)
    assert "not logged to MLflow" in capsys.readouterr().err
    logged = runs_of(project)
    (broken,) = logged.pipelines()
    assert broken.info.status == "FAILED"
    (project / "mlartifacts").unlink()
    assert track(project)
    (whole,) = logged.pipelines()
    assert (whole.info.run_id, whole.info.status) == (broken.info.run_id, "FINISHED")
    assert len(logged.runs()) == 1 + len(STAGES)


def test_a_half_logged_stage_is_logged_anew(project, runs_of):
    track(project)
    logged = runs_of(project)
    killed = logged.stages()["pretrain"]
    logged.client.update_run(killed.info.run_id, status="RUNNING")
    logged.client.update_run(logged.pipelines()[0].info.run_id, status="RUNNING")
    track(project)
    again = logged.stages()["pretrain"]
    assert again.info.run_id != killed.info.run_id
    assert logged.history(again, "block_0/train_loss") == [(10, 5.5), (20, 5.0), (30, 4.5)]
    assert logged.pipelines()[0].data.tags["offramp.stage_run.pretrain"] == again.info.run_id
    assert len(logged.runs()) == 1 + len(STAGES)


def test_without_dvc_lock_the_metrics_identify_the_stages(project, capsys, runs_of):
    (project / "dvc.lock").unlink()
    assert track(project)
    assert "dvc.lock does not describe" in capsys.readouterr().err
    first = runs_of(project).stages()["evaluate"]
    assert first.data.tags["dvc.stage.evaluate"].startswith("files-")
    assert first.data.params == {"threshold": "0.75"}
    assert "input.lm.digest" in first.data.tags
    track(project)
    assert len(runs_of(project).runs()) == 1 + len(STAGES)


def test_a_stage_run_by_hand_is_not_taken_for_the_one_in_dvc_lock(project):
    timing = project / "metrics" / "timing.json"
    timing.write_text(timing.read_text().replace("0.12", "0.13"))
    locked = {stage.name: stage.locked for stage in read_stages(project)}
    assert locked == {name: name != "evaluate" for name in STAGES}


def test_stages_that_have_not_run_are_left_out(project, runs_of):
    (project / "dvc.lock").unlink()
    shutil.rmtree(project / "report")
    shutil.rmtree(project / "routed")
    (project / "metrics" / "routing.json").unlink()
    (project / "metrics" / "timing.json").unlink()
    assert track(project)
    assert sorted(runs_of(project).stages()) == ["collect", "prepare", "pretrain", "sweep"]


def test_nothing_to_track_is_an_error(project):
    (project / "dvc.lock").unlink()
    for folder in ("data", "models", "states", "routed", "report", "metrics"):
        shutil.rmtree(project / folder)
    with pytest.raises(UserError, match="dvc repro"):
        track(project)


def test_the_run_of_the_whole_is_described_by_the_note(tracked):
    (whole,) = tracked.pipelines()
    note = whole.data.tags["mlflow.note.content"]
    assert note.startswith(NOTE)
    assert f"/runs/{whole.info.run_id}/artifacts/report/index.html" in note


def test_routing_that_does_not_pay_is_warned_of(tracked, project, runs_of):
    """As a tag to search for, and in the description."""
    assert WARNING not in tracked.pipelines()[0].data.tags
    Routing.read(project).model_copy(update={"ppl": 40.0}).write(project)
    assert track(project, headline_sentence(project))
    (whole,) = runs_of(project).pipelines()
    assert whole.data.tags[WARNING] == "routing is worse than every token leaving at exit 0"
    assert whole.data.tags["mlflow.note.content"].startswith("WARNING: routing is worse than")


def test_a_result_knows_beforehand_under_which_name_it_will_be_logged(tracked):
    known = origin(tracked.root)
    (whole,) = tracked.pipelines()
    assert known.mlflow_run == whole.info.run_name and known.mlflow_experiment == tracked.experiment.name
    assert known.commit == whole.data.tags["mlflow.source.git.commit"]
    assert known.changed == (whole.data.tags["git.dirty"] == "true")


@pytest.mark.parametrize(
    "origin, source, commit",
    [
        ("git@github.com:a/b.git", "https://github.com/a/b#dvc.yaml", "https://github.com/a/b/tree/"),
        (
            "https://u:p@gitlab.com/g/s/r",
            "https://gitlab.com/g/s/r#dvc.yaml",
            "https://gitlab.com/g/s/r/-/tree/",
        ),
        ("ssh://git@git.here.org:22/a/b", "https://git.here.org/a/b#dvc.yaml", None),
        ("/somewhere/else", "dvc.yaml", None),
    ],
)
def test_the_commit_is_a_link_where_the_repository_has_pages(made_project, tmp_path, origin, source, commit):
    """MLflow 3.17 makes it one of a run of type PROJECT with such a source, whose host it knows."""
    root = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(made_project), str(root)], check=True)
    subprocess.run(["git", "remote", "set-url", "origin", origin], cwd=root, check=True)
    tags = common_tags(root)
    head = tags["mlflow.source.git.commit"]
    assert tags["mlflow.source.name"] == source
    assert tags["mlflow.source.type"] == ("PROJECT" if "#" in source else "LOCAL")
    assert commit_page(root) == (commit and commit + head)


def test_md5_of_a_folder_is_dvcs(tracked):
    for stage in read_stages(tracked.root):
        assert {path: dvc_md5(tracked.root / path) for path in stage.outs} == stage.outs


def test_parameters_of_no_result_change_nothing(tracked, made_project, tmp_path):
    """`runtime` is no part of any result: the stage `check` runs again, but there is nothing new to log."""
    root = tmp_path / "project"
    shutil.copytree(made_project, root)
    set_param(root, "snapshot_seconds: 30", "snapshot_seconds: 31")
    dvc_repro(root)
    assert read_stages(root) == read_stages(tracked.root)


def test_two_experiments_at_once_log_what_they_share_once(project, runs_of):
    other = subprocess.Popen(
        [sys.executable, "-m", "offramp.app.cli", "track"],
        env=os.environ | {"DVC_EXP_NAME": "other"},
        stdout=subprocess.DEVNULL,
    )
    assert track(project)
    assert other.wait() == 0
    logged = runs_of(project)
    (whole,) = logged.pipelines()
    assert whole.data.tags["dvc.exp_name"] == "other"
    assert len(logged.runs()) == 1 + len(STAGES)
