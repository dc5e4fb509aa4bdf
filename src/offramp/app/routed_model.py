"""The routed model behind MLflow's ``mlflow.pyfunc.load_model``: it continues prompts and scores text.

MLflow imports this module wherever such a model is loaded or saved, so all that is heavy is imported when the
model is opened.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow.pyfunc.model import PythonModel

from offramp.errors import UserError

if TYPE_CHECKING:
    from offramp.app.project import Project

TASKS = ("continue", "score")


class RoutedModel(PythonModel):
    """Early exit as params.yaml of its pipeline says, on the device that it names.

    ``predict`` takes texts, a list or the first column of a table, and as params: ``task``, ``continue`` (the
    default) or ``score``; ``tokens``, the most that are added to a text (64); ``temperature``, above 0 to
    sample (0); ``full``, to let nobody leave early. It gives a row for each: of ``continue`` the ``text``
    that follows; of ``score`` the ``loss`` in nats per token and the ``ppl``; of both the ``tokens`` that
    were predicted and the share of them that left ``early``.
    """

    def load_context(self, context: Any) -> None:
        """Open what lies in the model's folder; UserError where a file is not the one that was logged."""
        self.project = _open(Path(context.artifacts["project"]))
        self.policy = self.project.policy()

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """One row for each text; UserError for an unknown task and for texts that cannot be run."""
        given = {"task": "continue", "tokens": 64, "temperature": 0.0, "full": False, **(params or {})}
        if given["task"] not in TASKS:
            raise UserError(f"task = {given['task']!r} is not known; give {' or '.join(TASKS)}")
        texts = model_input.iloc[:, 0]
        policy = None if given["full"] else self.policy
        if given["task"] == "score":
            return pd.DataFrame([_score(self.project, policy, text) for text in texts])
        return pd.DataFrame(
            [_continue(self.project, policy, text, given["tokens"], given["temperature"]) for text in texts]
        )


def _continue(project: Project, policy: Any, text: str, tokens: int, temperature: float) -> dict[str, Any]:
    from offramp.routing.generate import Sampling, decode

    prompt = project.encode_prompt(text)
    sampling = Sampling(temperature) if temperature else None
    steps = decode(
        project.model,
        [prompt],
        tokens,
        policy,
        kv=project.params.routing.kv,
        sampling=sampling,
        stop=project.stop_ids,
    )
    new, exits = [], []
    for step in steps:
        new += step.tokens
        exits += step.exits
    last = project.model.config.num_blocks - 1
    return {
        "text": project.decode(prompt[-1], [token for token in new if token not in project.stop_ids]),
        "early": sum(exit < last for exit in exits) / len(exits),
        "tokens": len(new),
    }


def _score(project: Project, policy: Any, text: str) -> dict[str, Any]:
    """In windows, as in evaluation: the first token of each is predicted from the one before it alone."""
    import numpy as np
    import torch

    from offramp.routing.executor import Executor

    ids = project.encode_prompt(text)
    if project.end_id is not None and not project.opening:
        ids = [project.end_id, *ids]
    if len(ids) < 2:
        raise UserError(f"a text of {len(ids)} token(s) has none to be predicted; give a longer one")
    executor = Executor(project.model, project.params.routing.kv, project.params.collect.precision)
    window, last = project.model.config.window, project.model.config.num_blocks - 1
    losses, early = [], 0
    for start in range(0, len(ids) - 1, window):
        row = torch.tensor([ids[start : start + window + 1]], device=project.device)
        routed = executor.run(row[:, :-1].contiguous(), row[:, 1:].contiguous(), policy)
        losses += routed.loss.double().flatten().tolist()
        early += int((routed.exit < last).sum())
    loss = float(np.mean(losses))
    return {"loss": loss, "ppl": float(np.exp(loss)), "early": early / len(losses), "tokens": len(losses)}


def _open(root: Path) -> Project:
    """The project in a model's folder, which has no text: of its data there is the tokenizer alone."""
    from offramp.app.project import Project
    from offramp.artifacts.artifact import MANIFEST, Artifact, open_artifact
    from offramp.artifacts.files import hash_file
    from offramp.artifacts.manifest import read_manifest
    from offramp.machine.device import setup
    from offramp.models.store import load_model
    from offramp.params import read_params

    params = read_params(root / "params.yaml")
    device = setup(params.runtime.device, params.runtime.threads)
    folder, tokenizer = root / "data", root / "data/tokenizer.json"
    manifest = read_manifest(folder)
    if hash_file(tokenizer) != manifest["files"][tokenizer.name]["sha256"]:
        raise UserError(f"{tokenizer} is not the one that was logged; log the model again")
    fields = ("kind", "digest", "params", "inputs", "meta", "made_with")
    there = frozenset({tokenizer, folder / MANIFEST})
    data = Artifact(path=folder, files=there, **{name: manifest[name] for name in fields})
    lm = open_artifact(root / "models/lm", "lm", inputs={"data": data})
    return Project(root, params, data, lm, load_model(lm, root).to(device), device)
