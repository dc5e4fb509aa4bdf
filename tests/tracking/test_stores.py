"""Where runs are logged, stores that are away or were changed, and addresses printed without secrets."""

import shutil

import pytest
from mlflow import MlflowClient

from offramp.tracking.address import without_secrets
from offramp.tracking.store import StoreError, open_store
from offramp.tracking.tracking import track
from offramp.tracking.view import address


@pytest.mark.parametrize(
    "uri",
    [
        "sqlite:////dev/null/mlflow.db",
        "sqlite:///{root}/params.yaml",  # not a database
        "file://{root}/mlruns",  # refused by MLflow
        "http://127.0.0.1:9",  # nobody listens
    ],
)
def test_a_store_that_cannot_be_used_is_a_warning(project, monkeypatch, capfd, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri.format(root=project))
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    params = (project / "params.yaml").read_text()
    assert track(project) is False
    err = capfd.readouterr().err
    assert err.count("warning:") == 1
    for words in ("not logged to MLflow", "metrics/", "offramp track", "MLFLOW_TRACKING_URI"):
        assert words in err
    assert (project / "params.yaml").read_text() == params


def test_tracking_uri_is_followed(project, tmp_path, empty_database, monkeypatch, runs_of):
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(empty_database, tmp_path / "elsewhere" / "mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/elsewhere/mlflow.db")
    assert track(project)
    assert len(runs_of(tmp_path / "elsewhere", experiment="project").pipelines()) == 1


def test_the_store_of_a_project_that_moved_is_not_used_for_writing(tracked_copy, capsys):
    assert not track(tracked_copy.root)
    assert "made for a project elsewhere" in capsys.readouterr().err


def test_a_run_that_was_deleted_is_logged_again(project, runs_of):
    track(project)
    logged = runs_of(project)
    gone = logged.stages()["pretrain"].info.run_id
    logged.client.delete_run(gone)
    assert track(project)
    (whole,) = logged.pipelines()
    again = logged.stages()["pretrain"]
    assert again.info.run_id != gone and again.data.tags["mlflow.parentRunId"] == whole.info.run_id
    assert whole.data.tags["offramp.stage_run.pretrain"] == again.info.run_id


def test_a_deleted_experiment_is_restored_and_said(project, runs_of, capsys):
    track(project)
    logged = runs_of(project)
    logged.client.delete_experiment(logged.experiment.experiment_id)
    with pytest.raises(StoreError, match="was deleted"), open_store(project, write=False):
        pass
    capsys.readouterr()
    assert track(project)
    assert "had been deleted in MLflow; it is restored" in capsys.readouterr().err
    assert len(logged.pipelines()) == 1


def test_the_name_of_the_experiment_can_be_given(project, monkeypatch, capsys, runs_of):
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    monkeypatch.setenv("MLFLOW_RUN_ID", "0123")
    assert track(project)
    logged = runs_of(project)
    assert logged.experiment is None and logged.client.get_experiment_by_name("mine")
    assert "MLFLOW_RUN_ID is set and not used" in capsys.readouterr().err


def test_a_relative_store_starts_at_the_project(project, experiment, monkeypatch, empty_database):
    """Not at the copy in which DVC runs an experiment, which it deletes."""
    shutil.copy(empty_database, project / "rel.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///rel.db")
    monkeypatch.chdir(experiment)
    assert track(experiment)
    assert not (experiment / "rel.db").exists()
    client = MlflowClient(f"sqlite:///{project}/rel.db")
    assert client.get_experiment_by_name("project")


@pytest.mark.parametrize(
    "uri",
    [
        "http://bob:s3cret@127.0.0.1:9",
        "postgresql://bob:s3cret@127.0.0.1:9/mlflow",
        "mssql+pymssql://bob:s3cret@h/d",
    ],
)
def test_no_secret_is_printed(project, monkeypatch, capfd, uri):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert track(project) is False
    out = "".join(capfd.readouterr())
    assert "not logged to MLflow" in out and "s3cret" not in out


def test_secrets_are_taken_out_of_addresses():
    assert without_secrets("http://bob:pw@h:1/x failed") == "http://***@h:1/x failed"
    assert (
        without_secrets("postgresql://h/d?user=a&password=pw&x=1")
        == "postgresql://h/d?user=a&password=***&x=1"
    )
    assert address("https://bob:pw@h", "#/") == "https://h/#/"
