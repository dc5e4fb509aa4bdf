"""Where the MLflow store of a project is, what it is called in it, and addresses without their secrets."""

from __future__ import annotations

import os
import re
from pathlib import Path

SQLITE = "sqlite:///"


def store_root(root: Path) -> Path:
    """Where the default store lives: in the project, also from an experiment's temporary copy (DVC_ROOT)."""
    return Path(os.environ.get("DVC_ROOT") or root).resolve()


def store_uri(root: Path) -> str:
    """MLFLOW_TRACKING_URI, or mlflow.db in the project; relative ones start at the project.

    MLflow would start them at the current folder, which DVC deletes after an experiment in a copy.
    """
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"{SQLITE}mlflow.db"
    scheme, path = (SQLITE, uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else ("", uri)
    if path == ":memory:" or (not scheme and ":" in path):
        return uri
    return scheme + str(store_root(root) / path)


def experiment_name(root: Path) -> str:
    """The experiment of the project's runs: MLFLOW_EXPERIMENT_NAME, or the name of the project's folder."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or store_root(root).name


def is_server(uri: str) -> bool:
    """Whether the store is reached over a network."""
    return uri.startswith(("http:", "https:", "databricks"))


def without_secrets(message: str) -> str:
    """The message without names, passwords and tokens of addresses (``http://user:password@host``)."""
    message = re.sub(r"(?<=://)[^/\s]*@", "***@", message)
    return re.sub(r"(?i)((?:password|passwd|token|secret)=)[^&\s'\"]+", r"\1***", message)


def without_user(url: str) -> str:
    """An address without the user and password that may stand before the host, so that it can be opened."""
    return re.sub(r"(?<=://)[^/\s]*@", "", url)
