"""DVC's experiments as its users run them: in a copy, from a queue, applied and made a branch."""

from __future__ import annotations

import json
import shutil

import pytest
from mlflow import MlflowClient

from tests.fixtures.checkpoints import TEXT, save_checkpoint
from tests.fixtures.live_project import wait_for
from tests.fixtures.pipeline_run import command, experiments, queue_workers, stages_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(reduced_run, tmp_path_factory):
    """A copy of the finished project, with an MLflow store of its own, in which git ignores build/."""
    folder = shutil.copytree(reduced_run, tmp_path_factory.mktemp("experiments") / "tiny")
    (folder / "mlflow.db").unlink()
    shutil.rmtree(folder / "mlartifacts")
    return folder


def runs(folder):
    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    experiment = client.get_experiment_by_name("tiny")
    found = client.search_runs([experiment.experiment_id], "tags.`offramp.role` = 'pipeline'")
    return {run.info.run_name: run for run in found}


def test_an_experiment_in_a_copy_leaves_the_files_alone_and_can_be_applied_and_branched(project):
    done = command(project, "dvc", "exp", "run", "--temp", "--name", "lower", "-S", "threshold=0.45").stdout
    assert stages_run(done) == ["check", "evaluate", "report", "track"]
    assert command(project, "git", "status", "--porcelain").stdout == ""
    run = runs(project)["threshold=0.45 (lower)"]
    assert run.info.status == "FINISHED" and "offramp.model" in run.data.tags
    table = command(project, "offramp", "compare").stdout.splitlines()
    (line,) = [line for line in table if line.startswith("lower")]
    assert "threshold=0.45" in line and f"{run.data.metrics['ppl']:.3f}" in line
    command(project, "dvc", "exp", "apply", "lower")
    headline = json.loads((project / "metrics/headline.json").read_text())
    assert headline["ppl"] == run.data.metrics["ppl"]
    assert stages_run(command(project, "dvc", "repro").stdout) == ["check", "track"]
    assert len(runs(project)) == 1, "one result is one run, whichever way it was reached"
    command(project, "dvc", "exp", "branch", "lower", "lower-branch")
    shown = command(project, "git", "show", "lower-branch:metrics/headline.json").stdout
    assert json.loads(shown) == headline
    command(project, "git", "checkout", "--", ".")
    command(project, "dvc", "checkout")


def test_a_queue_is_worked_off_by_two_at_once(project):
    before = experiments(project)
    command(project, "dvc", "exp", "run", "--queue", "-S", "threshold=0.6,0.7")
    with queue_workers(project, jobs=2):
        wait_for(lambda: len(experiments(project) - before) == 2, seconds=400)
    assert {run.data.params["threshold"] for run in runs(project).values()} >= {"0.6", "0.7"}
    assert command(project, "git", "status", "--porcelain").stdout == ""


def test_what_git_does_not_hold_is_read_from_the_project(project):
    """In a copy there is no build/: neither the text nor the checkpoint may be missed or asked of the hub."""
    (project / "build/mine.txt").write_text(TEXT)
    save_checkpoint(project / "build/tiny", text=TEXT)
    settings = {
        "corpus.source": "files",
        "corpus.paths": "[build/mine.txt]",
        "model.source": "hf",
        "model.name_or_path": "build/tiny",
        "model.exits_after": "[2]",
        "tokenizer.kind": "pretrained",
        "pretrain.method": "frozen",
    }
    words = [word for key, value in settings.items() for word in ("-S", f"{key}={value}")]
    done = command(project, "dvc", "exp", "run", "--temp", "--name", "ignored", *words, "check").stdout
    assert stages_run(done) == ["check"]


def test_status_names_only_what_always_looks(project):
    assert set(json.loads(command(project, "dvc", "status", "--json").stdout)) == {"check", "track"}


def test_a_dry_run_says_what_would_run(project):
    params = project / "params.yaml"
    params.write_text(params.read_text().replace("threshold: 0.8", "threshold: 0.65"))
    would = stages_run(command(project, "dvc", "repro", "--dry").stdout)
    command(project, "git", "checkout", "--", "params.yaml")
    assert "evaluate" in would and "pretrain" not in would
