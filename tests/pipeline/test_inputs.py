"""Artifacts that do not belong together are refused by name before anything is computed."""

from __future__ import annotations

import shutil

import pytest

from offramp.artifacts.artifact import create_artifact, open_artifact
from offramp.corpus.prepare import prepare
from offramp.errors import UserError
from offramp.params import load_params
from pipeline._inputs import open_routing_inputs
from tests.conftest import REPOSITORY, repository_params
from tests.fixtures.small_project import make_project


@pytest.fixture(scope="module")
def project(addresses, tmp_path_factory):
    root = tmp_path_factory.mktemp("project")
    make_project(root, addresses)
    shutil.copy(REPOSITORY / "dvc.yaml", root)
    open_routing_inputs(load_params("evaluate", root), root)  # as they are, they belong together
    return root


def refused(root, message):
    with pytest.raises(UserError, match=message):
        open_routing_inputs(load_params("evaluate", root), root)


def test_a_model_and_states_of_another_tokenizer(project, addresses, tmp_path):
    root = shutil.copytree(project, tmp_path / "copy")
    other = repository_params(
        corpus__source="files",
        corpus__paths=[str(addresses)],
        corpus__calibration_fraction=0.3,
        corpus__test_fraction=0.2,
        tokenizer__vocab_size=300,
        window=32,
    )
    prepare(other.corpus, other.tokenizer, other.window, root / "data", {})
    refused(root, r"models/lm was made from another data .*run `dvc repro` to make them match")
    with create_artifact(root / "models/lm", "lm", {}, {"data": open_artifact(root / "data", "data")}):
        pass
    refused(root, r"states/test was made from another data")


def test_states_of_another_model(project, addresses, tmp_path):
    root = shutil.copytree(project, tmp_path / "copy")
    data = open_artifact(root / "data", "data")
    with create_artifact(root / "models/lm", "lm", {"another": True}, {"data": data}):
        pass
    refused(root, r"states/test was made from another lm")
    with create_artifact(
        root / "states/test", "states", {}, {"data": data, "lm": open_artifact(root / "models/lm", "lm")}
    ) as out:
        out.meta["exits"] = 2
    refused(root, r"models/exits was trained on states of another model than .*models/lm; run `dvc repro`")
