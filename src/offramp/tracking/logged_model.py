"""The routed model as a model of MLflow's, linked to its run: `models/lm`, `models/exits`, the tokenizer.

It is a model from code: the folder in the store holds these artifacts as they are, safetensors and JSON, and
three lines of Python that name ``offramp.app.routed_model``, which runs them. Nothing is pickled.
"""

from __future__ import annotations

import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from offramp.artifacts.artifact import MANIFEST
from offramp.tracking.recorded import read_manifest
from offramp.tracking.store import RunRecord, Store, store_errors

NAME = "routed"
TAG = "offramp.model"
"""Of a run: the id of its model."""
PACKED = (
    "models/lm",
    "models/exits",
    "params.yaml",
    f"data/{MANIFEST}",
    "data/tokenizer.json",
    f"routed/{MANIFEST}",
)
"""What runs the model: of the data, what turns text into tokens; of what was routed, the thresholds."""
CODE = """from mlflow.models import set_model
from offramp.app.routed_model import RoutedModel

set_model(RoutedModel())
"""


def log_model(store: Store, root: Path, run_id: str, record: RunRecord) -> tuple[str, int] | None:
    """Give the model to the store; its id and its bytes there, or None where the pipeline has made none yet.

    ``record`` is that of its run: its headline is the model's too.
    """
    manifests = [read_manifest(root / path) for path in ("models/lm", "models/exits")]
    if not all(manifests) or not all((root / path).exists() for path in PACKED):
        return None
    from mlflow.entities import LoggedModelOutput, Metric

    with tempfile.TemporaryDirectory() as folder, store_errors(store.uri):
        packed = Path(folder) / "model"
        _save(root, packed, Path(folder))
        size = sum(file.stat().st_size for file in packed.rglob("*") if file.is_file())
        model = store.client.create_logged_model(
            store.experiment_id,
            name=NAME,
            source_run_id=run_id,
            model_type="early-exit language model",
            params={
                name: str(record.params[name]) for name in ("threshold", "exits.confidence", "routing.kv")
            },
            tags={
                "offramp.lm": manifests[0]["digest"] if manifests[0] else "",
                "offramp.exits": manifests[1]["digest"] if manifests[1] else "",
                "offramp.megabytes": f"{size / 1e6:.1f}",
            },
        )
        store.client.log_model_artifacts(model.model_id, str(packed))
        store.client.finalize_logged_model(model.model_id, "READY")
        store.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
        metrics = [
            Metric(key, value, record.ended or 0, step, model_id=model.model_id)
            for key, value, step in record.points
            if "/" not in key
        ]
        store.client.log_batch(run_id, metrics=metrics)
    return model.model_id, size


def _save(root: Path, packed: Path, folder: Path) -> None:
    """Write the model's folder as MLflow wants it."""
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types.schema import ColSpec, ParamSchema, ParamSpec, Schema

    project, code = folder / "project", folder / "routed.py"
    for path in PACKED:
        source, target = root / path, project / path
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    code.write_text(CODE, encoding="utf-8")
    defaults: tuple[tuple[str, str, Any], ...] = (
        ("task", "string", "continue"),
        ("tokens", "long", 64),
        ("temperature", "double", 0.0),
        ("full", "boolean", False),
    )
    mlflow.pyfunc.save_model(
        str(packed),
        python_model=str(code),
        artifacts={"project": str(project)},
        signature=ModelSignature(
            inputs=Schema([ColSpec("string")]),
            outputs=Schema(
                [ColSpec("string", "text"), ColSpec("double", "early"), ColSpec("long", "tokens")]
            ),
            params=ParamSchema([ParamSpec(*default) for default in defaults]),
        ),
        input_example=(["The state of the union is"], {"tokens": 16}),
        pip_requirements=[f"offramp=={version('offramp')}"],
    )
