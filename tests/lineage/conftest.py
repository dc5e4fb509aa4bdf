"""A tiny project that DVC has really run: stages that make small artifacts and metrics instead of training.

The template projects and the MLflow schema are made once per session and copied per test, because DVC takes
a second per stage and MLflow five for a new database.
"""

import io
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from offramp.lineage.tracking import track

REPOSITORY = Path(__file__).parents[2]
OUTSIDE = ("MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV", "DVC_STAGE")
"""Variables of the surroundings that would lead tests to a real store."""
DVC_YAML = """
stages:
  check:
    cmd: {python} code/fake.py check
    always_changed: true
    params: [corpus]
    deps: [params.yaml]
    outs: [build/corpus.json]
  prepare:
    cmd: {python} code/fake.py prepare
    params: [corpus, window]
    deps: [code, build/corpus.json]
    outs: [data, metrics/corpus.json: {{cache: false}}]
  pretrain:
    cmd: {python} code/fake.py pretrain
    params: [model, pretrain]
    deps: [code, data]
    outs: [models/lm, metrics/pretrain.json: {{cache: false}}, metrics/plots/learning_curves.csv: {{cache: false}}]
  collect:
    cmd: {python} code/fake.py collect
    params: [collect]
    deps: [data, models/lm]
    outs: [states/calibration, states/test, metrics/states.json: {{cache: false}}]
  sweep:
    cmd: {python} code/fake.py sweep
    params: [routing.curve_fractions]
    deps: [states/test]
    outs: [metrics/plots/threshold_curve.csv: {{cache: false}}]
  evaluate:
    cmd: {python} code/fake.py evaluate
    params: [threshold]
    deps: [data, models/lm, states/test]
    outs: [routed, metrics/routing.json: {{cache: false}}, metrics/timing.json: {{cache: false}}]
  report:
    cmd: {python} code/fake.py report
    params: [report]
    deps: [metrics/routing.json, metrics/plots/threshold_curve.csv, routed]
    outs: [report]
"""


def run(*command, cwd, **env):
    done = subprocess.run(command, cwd=cwd, env=os.environ | env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def git_commit(root, message):
    run("git", "add", "--all", cwd=root)
    run("git", "-c", "user.name=t", "-c", "user.email=t@example.org", "commit", "-qm", message, cwd=root)


def dvc_repro(root):
    run(sys.executable, "-m", "dvc", "repro", "-q", cwd=root, PYTHONPATH=str(REPOSITORY / "src"), DVC_NO_ANALYTICS="true")


def set_param(root, line, new):
    params = root / "params.yaml"
    assert line in params.read_text()
    params.write_text(params.read_text().replace(line, new))


@pytest.fixture(scope="session")
def store_being_born(tmp_path_factory):
    """Two processes that open the same store for writing before it exists, both at once: MLflow alone fails at this."""
    root = tmp_path_factory.mktemp("mlflow")
    code = "import sys, pathlib; from offramp.lineage.store import open_store\nwith open_store(pathlib.Path(sys.argv[1])): pass"
    return root, [subprocess.Popen([sys.executable, "-c", code, str(root)]) for _ in range(2)]


@pytest.fixture(scope="session")
def made_project(tmp_path_factory, store_being_born):  # in that order: the processes work while DVC does
    root = tmp_path_factory.mktemp("made") / "project"
    (root / "code").mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("fake_stages.py"), root / "code" / "fake.py")
    params = (REPOSITORY / "params.yaml").read_text()  # with a threshold of the tests' own, whatever the default is
    (root / "params.yaml").write_text(re.sub(r"^threshold: .*$", "threshold: 0.75", params, flags=re.MULTILINE))
    (root / "dvc.yaml").write_text(DVC_YAML.format(python=sys.executable))
    (root / ".gitignore").write_text("mlflow.db\nmlartifacts\n")
    (root / ".dvcignore").write_text("__pycache__/\n*.pyc\n")
    run("git", "init", "-q", cwd=root)
    run(sys.executable, "-m", "dvc", "init", "-q", cwd=root)
    dvc_repro(root)
    git_commit(root, "Run the pipeline")
    return root


@pytest.fixture(scope="session")
def made_experiment(made_project, tmp_path_factory):
    """The same project after another threshold was tried, with nothing committed."""
    root = tmp_path_factory.mktemp("made") / "experiment"
    shutil.copytree(made_project, root)
    set_param(root, "threshold: 0.75", "threshold: 0.9")
    dvc_repro(root)
    return root


@pytest.fixture(scope="session")
def empty_database(store_being_born):
    """MLflow's schema without the experiment."""
    root, openers = store_being_born
    assert [opener.wait() for opener in openers] == [0, 0]
    with closing(sqlite3.connect(root / "mlflow.db")) as database:
        assert database.execute("DELETE FROM experiments WHERE name = 'offramp'").rowcount == 1
        database.commit()
    return root / "mlflow.db"


@pytest.fixture(scope="session", autouse=True)
def plain_environment(tmp_path_factory):
    locks = str(tmp_path_factory.mktemp("locks"))  # where stores' locks go instead of the machine's temporary folder
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", locks)
        patch.setattr(tempfile, "tempdir", locks)
        for name in OUTSIDE:
            patch.delenv(name, raising=False)
        yield


class Tracked:
    """A project's folder, the runs in its default store, and what logging them printed."""

    def __init__(self, root, out="", err=""):
        from mlflow import MlflowClient

        self.root, self.out, self.err = root, out, err
        self.client = MlflowClient(tracking_uri=f"sqlite:///{root}/mlflow.db")
        self.experiment = self.client.get_experiment_by_name("offramp")

    def runs(self, condition=""):
        return self.client.search_runs([self.experiment.experiment_id], condition)

    def pipelines(self):
        """The runs of wholes, newest first."""
        return self.runs("tags.`offramp.role` = 'pipeline'")

    def stages(self):
        return {run.data.tags["offramp.stage"]: run for run in self.runs("tags.`offramp.role` = 'stage'")}

    def history(self, run, key):
        return [(point.step, point.value) for point in self.client.get_metric_history(run.info.run_id, key)]


@pytest.fixture(scope="session")
def tracked(made_project, empty_database, tmp_path_factory):
    """A project that was logged once; only to be read."""
    root = tmp_path_factory.mktemp("tracked") / "project"
    shutil.copytree(made_project, root)
    shutil.copy(empty_database, root / "mlflow.db")
    with redirect_stdout(io.StringIO()) as out, redirect_stderr(io.StringIO()) as err:
        assert track(root)
    return Tracked(root, out.getvalue(), err.getvalue())


@pytest.fixture
def runs_of():
    """Opens the default store of a project."""
    return Tracked


@pytest.fixture
def tracked_copy(tracked, tmp_path, monkeypatch):
    """A copy of the logged project, to be tampered with."""
    root = tmp_path / "project"
    shutil.copytree(tracked.root, root)
    monkeypatch.chdir(root)
    return Tracked(root)


@pytest.fixture
def project(made_project, empty_database, tmp_path, monkeypatch):
    """A copy of the project to work in, with an MLflow database that is ready but empty."""
    root = tmp_path / "project"
    shutil.copytree(made_project, root)
    shutil.copy(empty_database, root / "mlflow.db")
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def experiment(made_experiment, project, tmp_path, monkeypatch):
    """A copy of the experiment, as DVC would run it: in a folder of its own, logging to ``project``'s store."""
    root = tmp_path / "experiment"
    shutil.copytree(made_experiment, root)
    monkeypatch.setenv("DVC_ROOT", str(project))
    monkeypatch.setenv("DVC_EXP_NAME", "gaudy-moose")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "0123456789")
    return root
