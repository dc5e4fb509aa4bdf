"""Runs read from MLflow's database itself are those that MLflow's own client gives."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys

import pytest

from offramp.tracking.reading import Database, read_runs
from offramp.tracking.store import ROLE, STAGE, Store, StoreError


@pytest.fixture(scope="module")
def both(tracked, tmp_path_factory):
    """A copy of a project's store with a failed and a deleted run in it, read both ways."""
    root = tmp_path_factory.mktemp("read") / "project"
    shutil.copytree(tracked.root, root)
    uri = f"sqlite:///{root}/mlflow.db"
    client = type(tracked)(root).client
    experiment = tracked.experiment.experiment_id
    for status, deleted in (("FAILED", False), ("FINISHED", True), ("FINISHED", False)):
        run = client.create_run(experiment, tags={ROLE: STAGE, "offramp.stage": "pretrain", "odd": "it's"})
        client.set_terminated(run.info.run_id, status)
        if deleted:
            client.delete_run(run.info.run_id)
    with read_runs(root) as runs:
        assert isinstance(runs, Database)
        yield runs, Store(client, experiment, uri)


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("limit", [1, 3, 100])
@pytest.mark.parametrize(
    "tags",
    [
        {ROLE: STAGE},
        {ROLE: STAGE, "offramp.stage": "pretrain"},
        {ROLE: STAGE, "offramp.key": None},
        {ROLE: STAGE, "dvc.stage.evaluate": None},
        {ROLE: "pipeline"},
        {"no.such.tag": None},
    ],
)
def test_the_same_runs_in_the_same_order(both, tags, limit, finished):
    runs, _ = both
    read, wanted = (store.find(tags, finished, limit) for store in both)
    assert [run.info.run_id for run in read] == [run.info.run_id for run in wanted]
    for ours, theirs in zip(read, wanted):
        assert ours.data.tags == theirs.data.tags and ours.data.params == theirs.data.params
        assert runs.get(ours.info.run_id) == ours


def test_values_are_no_part_of_the_query(both):
    (run,) = both[0].find({"odd": "it's"})
    assert run.data.tags["offramp.stage"] == "pretrain"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"experiments": "experiment_id, name"}, "no experiment named some_project yet"),
        ({}, "no such table"),
        (None, "not a database"),
    ],
)
def test_what_is_no_store_is_named(tmp_path, content, words):
    root = tmp_path / "some_project"
    root.mkdir()
    file = root / "mlflow.db"
    if content is None:
        file.write_text("threshold: 0.8\n" * 200)
    else:
        with sqlite3.connect(file) as database:
            for table, columns in content.items():
                database.execute(f"CREATE TABLE {table} ({columns})")
        database.close()
    with pytest.raises(StoreError, match=words), read_runs(root):
        pass


def test_reading_creates_nothing(tmp_path):
    with pytest.raises(StoreError, match="there is no"), read_runs(tmp_path):
        pass
    assert not list(tmp_path.iterdir())


def test_a_lineage_needs_neither_mlflow_nor_torch(tracked):
    heavy = {"mlflow", "torch", "pandas", "sqlalchemy"}
    code = (
        f"import sys; from offramp.app.cli import main; main(['lineage']); print({heavy} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tracked.root, capture_output=True, text=True)
    assert "MLflow run" in done.stdout and done.stdout.splitlines()[-1] == "set()", done.stderr
