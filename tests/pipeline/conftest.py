"""A copy of the repository as it stands, in which the reduced pipeline has run once through DVC and MLflow."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.reduce_params import reduce_params

ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith(("DVC_", "MLFLOW_", "GIT_"))},
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "OMP_WAIT_POLICY": "PASSIVE",
    "DVC_NO_ANALYTICS": "1", "MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONDONTWRITEBYTECODE": "1",
    "GIT_AUTHOR_NAME": "test", "GIT_AUTHOR_EMAIL": "test@localhost",
    "GIT_COMMITTER_NAME": "test", "GIT_COMMITTER_EMAIL": "test@localhost",
}


def command(folder: Path, *words: str, check: bool = True) -> subprocess.CompletedProcess:
    """Run a command in a project; the output of a failure is shown."""
    done = subprocess.run(words, cwd=folder, env=ENVIRONMENT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0 or not check, f"{' '.join(words)}\n{done.stdout}"
    return done


def copy_repository(folder: Path, **changes: object) -> Path:
    """The repository's files, also those not committed yet, as a fresh git repository with reduced parameters."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    for name in listed.stdout.splitlines():
        if (REPOSITORY / name).is_file() and not name.startswith(("metrics/", "dvc.lock", "docs/")):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(REPOSITORY / name, folder / name)
    reduce_params(folder / "params.yaml", **changes)
    command(folder, "git", "init", "-q")
    command(folder, "git", "add", "-A")
    command(folder, "git", "commit", "-q", "-m", "start")
    return folder


def run_stages(folder: Path) -> None:
    """Every stage but track, in one process: without DVC, and importing torch once."""
    command(folder, "python", "-c", "import sys; from importlib import import_module as load\n"
            "for name in sys.argv[1:]: load(f'pipeline.{name}').main()",
            "check", "prepare", "pretrain", "collect", "train_exits", "sweep", "evaluate", "suitability", "report")


@pytest.fixture(scope="session")
def project(tmp_path_factory) -> Path:
    folder = copy_repository(tmp_path_factory.mktemp("project"))
    command(folder, "dvc", "repro")
    command(folder, "git", "add", "-A")
    command(folder, "git", "commit", "-q", "-m", "first run")
    return folder
