"""The MLflow store: where it is, opening it safely, and runs that are always closed."""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import sqlite3
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from offramp.tracking.address import experiment_name, is_server, store_root, store_uri, without_secrets

ROLE = "offramp.role"
PIPELINE, STAGE = "pipeline", "stage"
LOCK_SECONDS = 120


class StoreError(Exception):
    """The tracking store cannot be reached, read or written; the message says why, and no secret."""

    def __init__(self, message: str):
        super().__init__(without_secrets(message))


@dataclass(frozen=True)
class Dataset:
    """An artifact that a run read, as MLflow shows it."""

    name: str
    digest: str
    source: str
    context: str


@dataclass
class RunRecord:
    """Everything one run will hold, in plain values."""

    name: str
    tags: dict[str, str]
    params: dict[str, Any] = field(default_factory=dict)
    points: list[tuple[str, float, int]] = field(default_factory=list)
    datasets: list[Dataset] = field(default_factory=list)
    files: list[tuple[Path, str]] = field(default_factory=list)
    """Files or folders to attach, with the folder they go to inside the run (``""``: its top)."""
    begun: int | None = None
    """When what it tells of began and ended, in ms; None: now."""
    ended: int | None = None


def user_name() -> str:
    """Who runs this, for MLflow: the name, or where a container's user has none, the number."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())


class Store:
    """The project's experiment in an open tracking store.

    Runs are looked for in the experiments ``searched``, in the project's alone if none are given.
    """

    def __init__(self, client: Any, experiment_id: str, uri: str, searched: Sequence[str] = ()):
        self.client, self.experiment_id, self.uri = client, experiment_id, uri
        self._searched = list(searched) or [experiment_id]

    def find(self, tags: Mapping[str, str | None], finished: bool | None = True, limit: int = 1) -> list[Any]:
        """The newest MLflow runs that carry ``tags`` (None: any value) and have, or have not, finished.

        With ``finished`` None: whatever their status is.
        """
        terms = [
            f"tags.`{key}` LIKE '%'" if value is None else f"tags.`{key}` = '{value}'"
            for key, value in tags.items()
        ]
        if finished is not None:
            terms.append(f"attributes.status {'=' if finished else '!='} 'FINISHED'")
        with store_errors(self.uri):
            return self.client.search_runs(self._searched, " and ".join(terms), max_results=limit)

    def get(self, run_id: str) -> Any:
        """The MLflow run of that id."""
        with store_errors(self.uri):
            return self.client.get_run(run_id)

    @contextmanager
    def run(self, record: RunRecord, reopen: str | None = None, ended: int | None = None) -> Iterator[str]:
        """Log ``record``, yield the run's id, and close the run FINISHED, or FAILED on an exception.

        ``reopen`` continues the run of that id; ``ended`` (ms) is when it ended, if not now.
        """
        with store_errors(self.uri):
            if reopen is None:
                run = self.client.create_run(
                    self.experiment_id, record.begun, tags=record.tags, run_name=record.name
                )
            else:
                run = self.client.get_run(reopen)
                self.client.update_run(reopen, status="RUNNING")
        run_id = run.info.run_id
        try:
            with store_errors(self.uri):
                self._log(run_id, record, logged=run.data.params)
            yield run_id
            with store_errors(self.uri):
                self.client.set_terminated(run_id, "FINISHED", ended or record.ended)
        except BaseException:
            with suppress(Exception):  # the store may be what failed
                self.client.set_terminated(run_id, "FAILED")
            raise

    def begin(self, record: RunRecord, begun: int) -> str:
        """Open a run that began at ``begun`` (ms), with the tags and params of ``record``; its id."""
        from mlflow.entities import Param

        params = [Param(key, text(value)) for key, value in record.params.items()]
        with store_errors(self.uri):
            run = self.client.create_run(self.experiment_id, begun, record.tags, record.name)
            for start in range(0, len(params), 100):
                self.client.log_batch(run.info.run_id, params=params[start : start + 100])
        return run.info.run_id

    def begin_again(self, run_id: str) -> None:
        """Say that a run goes on."""
        with store_errors(self.uri):
            self.client.update_run(run_id, status="RUNNING")

    def log(self, run_id: str, points: list[tuple[str, float, int, int]]) -> None:
        """Add points to a run: key, value, step, and when it was measured (ms)."""
        from mlflow.entities import Metric

        metrics = [Metric(key, value, at, step) for key, value, step, at in points]
        with store_errors(self.uri):
            for start in range(0, len(metrics), 1000):
                self.client.log_batch(run_id, metrics=metrics[start : start + 1000])

    def history(self, run_id: str, key: str) -> list[tuple[float, int]]:
        """What a run holds of one key: values and steps."""
        with store_errors(self.uri):
            return [(point.value, point.step) for point in self.client.get_metric_history(run_id, key)]

    def end(self, run_id: str, status: str, ended: int | None = None) -> None:
        """Close a run that ended at ``ended`` (ms), now if it is None."""
        with store_errors(self.uri):
            self.client.set_terminated(run_id, status, ended)

    def tags(self) -> dict[str, str]:
        """The tags of the experiment."""
        with store_errors(self.uri):
            return dict(self.client.get_experiment(self.experiment_id).tags)

    def describe(self, tags: Mapping[str, str]) -> None:
        """Add those tags to the experiment that it has not yet: what people changed stays."""
        known = self.tags()
        with store_errors(self.uri):
            for key, value in tags.items():
                if key not in known:
                    self.client.set_experiment_tag(self.experiment_id, key, value)

    def set_tags(self, run_id: str, tags: dict[str, str]) -> None:
        """Add tags to a run."""
        from mlflow.entities import RunTag

        with store_errors(self.uri):
            self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def delete(self, run_id: str) -> None:
        """Move a run to MLflow's bin."""
        with store_errors(self.uri):
            self.client.delete_run(run_id)

    def _log(self, run_id: str, record: RunRecord, logged: dict[str, str]) -> None:
        from mlflow.entities import DatasetInput, InputTag, Metric, Param
        from mlflow.utils.time import get_current_time_millis

        now = record.ended or get_current_time_millis()
        self.set_tags(run_id, record.tags)
        params = [Param(key, text(value)) for key, value in record.params.items() if key not in logged]
        metrics = [Metric(key, value, now, step) for key, value, step in record.points]
        for start in range(0, len(params), 100):  # MLflow takes 100 params and 1000 metrics a call
            self.client.log_batch(run_id, params=params[start : start + 100])
        for start in range(0, len(metrics), 1000):
            self.client.log_batch(run_id, metrics=metrics[start : start + 1000])
        if record.datasets:
            inputs = [
                DatasetInput(_entity(dataset), [InputTag("mlflow.data.context", dataset.context)])
                for dataset in record.datasets
            ]
            self.client.log_inputs(run_id, datasets=inputs)
        for path, folder in record.files:
            log = self.client.log_artifacts if path.is_dir() else self.client.log_artifact
            log(run_id, str(path), folder or None)


@contextmanager
def open_store(root: Path, write: bool = True, everywhere: bool = False) -> Iterator[Store]:
    """Open the store, one process of this machine at a time: to write, or only to read, ``everywhere`` what
    projects that share it have logged.

    Writing creates what is missing. MLflow's own first use is a race (concurrent processes fail with "table
    experiments already exists"), and writers that did not take turns could both log a stage they share, so a
    writer keeps the lock to the end. Raises StoreError, also if there is nothing to read yet.
    """
    uri = store_uri(root)
    _quiet()
    _probe(uri, write)
    with ExitStack() as stack:
        with store_errors(uri):
            from filelock import FileLock
            from mlflow import MlflowClient

            # not beside the database: the store may be on another machine
            name = f"offramp-{user_name()}-{hashlib.sha256(uri.encode()).hexdigest()[:16]}.lock"
            lock = stack.enter_context(FileLock(Path(tempfile.gettempdir()) / name, timeout=LOCK_SECONDS))
            client = MlflowClient(tracking_uri=uri)
            if everywhere:
                store = Store(client, "", uri, [one.experiment_id for one in client.search_experiments()])
            else:
                store = Store(client, _experiment(client, root, uri, write), uri)
            if not write:
                lock.release()
        yield store


def _experiment(client: Any, root: Path, uri: str, write: bool) -> str:
    """The number of the project's experiment, made where it is missing and runs are to be written."""
    name = experiment_name(root)
    experiment = client.get_experiment_by_name(name)
    if experiment is None and not write:
        raise StoreError(f"{uri} has no experiment named {name} yet")
    if experiment and experiment.lifecycle_stage == "deleted":
        _restore(client, experiment, uri, write)
    if write and experiment:
        _check_not_moved(experiment.artifact_location, root, uri)
    return cast(str, experiment.experiment_id if experiment else _create_experiment(client, root, uri))


@contextmanager
def store_errors(uri: str) -> Iterator[None]:
    """Turn whatever the store, its database or its server raises into a StoreError."""
    from filelock import Timeout
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except Timeout:
        raise StoreError(f"{uri} was in use by another process for {LOCK_SECONDS} seconds") from None
    except ImportError as error:  # SQLAlchemy knows the database, and its driver is not installed
        raise StoreError(f"{uri}: {error}; install that package") from error
    except (MlflowException, SQLAlchemyError, sqlite3.Error, OSError) as error:
        raise StoreError(
            f"{uri}: {str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error


def text(value: Any) -> str:
    """A parameter as params.yaml writes it: ``null``, ``true``, ``[1, 3]``, plain strings."""
    return value if isinstance(value, str) else json.dumps(value)


def _create_experiment(client: Any, root: Path, uri: str) -> str:
    # MLflow would resolve its default ./mlruns from the current folder and keep it for good: in an experiment
    # that DVC runs in a temporary copy, a folder about to be deleted
    return client.create_experiment(
        experiment_name(root), artifact_location=None if is_server(uri) else _artifact_location(root)
    )


def _restore(client: Any, experiment: Any, uri: str, write: bool) -> None:
    """Take an experiment out of MLflow's bin to write into it, for its name stays taken there."""
    if not write:
        raise StoreError(
            f"the experiment {experiment.name} was deleted in {uri}; `offramp track` restores it"
        )
    client.restore_experiment(experiment.experiment_id)
    print(
        f"warning: the experiment {experiment.name} had been deleted in MLflow; it is restored, with its "
        "runs. To begin a new one, set MLFLOW_EXPERIMENT_NAME",
        file=sys.stderr,
        flush=True,
    )


def _artifact_location(root: Path) -> str:
    return (store_root(root) / "mlartifacts").as_uri()


def _check_not_moved(location: str, root: Path, uri: str) -> None:
    """StoreError for the store of a project that was moved or copied: MLflow keeps absolute paths."""
    if "MLFLOW_TRACKING_URI" not in os.environ and location != _artifact_location(root):
        raise StoreError(
            f"{uri} was made for a project elsewhere and keeps its files in {location}; move mlflow.db and "
            "mlartifacts away to begin a new store, or set MLFLOW_TRACKING_URI to use it as it is"
        )


def _probe(uri: str, write: bool) -> None:
    """Fail at once where MLflow would go on trying: a database that cannot be opened, written or created."""
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(uri)
    except ArgumentError:
        return  # a server, or something MLflow will explain
    if url.get_backend_name() != "sqlite" or not url.database:
        return
    path = Path(url.database)
    if not write and not path.is_file():
        raise StoreError(f"there is no {path} yet")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=20)) as connection:
            connection.execute("BEGIN IMMEDIATE" if write else "PRAGMA schema_version")
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"{uri}: {error}") from error


def _quiet() -> None:
    """No telemetry, no start-up chatter, and a server that is down is given up on within seconds."""
    for name, value in {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
        "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    }.items():
        os.environ.setdefault(name, value)


def _entity(dataset: Dataset) -> Any:
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.data.sources import LocalArtifactDatasetSource  # type: ignore[attr-defined]

    source = LocalArtifactDatasetSource(uri=dataset.source)
    digest = dataset.digest[:36]  # the width of MLflow's column
    return MetaDataset(source, name=dataset.name, digest=digest)._to_mlflow_entity()  # type: ignore[abstract]
