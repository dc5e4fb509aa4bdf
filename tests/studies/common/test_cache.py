"""What is cached is known by the code that made it: a changed line makes it anew, everything else finds it
again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from offramp.artifacts.artifact import Artifact, create_artifact
from studies.common.cache import find, identity
from studies.common.study import HOME

MAKE = """
from pathlib import Path
from tests.fixtures.tiny_studies import tiny_job
from tests.fixtures.word_chains import chain_text
from studies.common.first_block import first_block

job = tiny_job("exit_labels", chain_text(), "published", Path("cache"))
block = first_block(job.text, job.cache, job.shared["first_block"], 42)
print(block.block0.file("weights.safetensors").stat().st_mtime_ns, block.block0.digest)
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The code of the repository."""
    root = tmp_path_factory.mktemp("copy")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "metrics", "build", "tmp", ".dvc")
    for folder in ("src", "studies", "tests"):
        shutil.copytree(HOME.parent / folder, root / folder, ignore=ignored)
    shutil.copy(HOME.parent / "params.yaml", root)
    return root


def make(root: Path) -> list[str]:
    """When the first block at ``root`` was trained, and its digest; it is trained where none is found."""
    environment = {**os.environ, "PYTHONPATH": f"{root}:{root / 'src'}", "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", MAKE], cwd=root, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.slow
def test_a_changed_line_of_training_code_trains_again_and_one_of_other_code_does_not(copy):
    first = make(copy)
    other = copy / "src/offramp/routing/decoder.py"
    other.write_text(other.read_text() + "# another line\n")
    assert make(copy) == first
    losses = copy / "src/offramp/training/losses.py"
    losses.write_text(losses.read_text() + "# another line\n")
    trained, digest = make(copy)
    assert trained != first[0] and digest != first[1]


def artifact(path: Path, known: dict, inputs: dict[str, Artifact]) -> Artifact:
    with create_artifact(path, "lm", known, inputs) as out:
        (out.path / "weights").write_text("1")
    made = find(path, "lm", known, inputs)
    assert made is not None
    return made


def test_an_identity_holds_the_digest_of_its_modules_code():
    one, other = (identity(f"studies.common.{name}", size=1) for name in ("first_block", "tables"))
    assert one["size"] == other["size"] == 1 and one["code"] != other["code"]
    assert one == identity("studies.common.first_block", size=1)


def test_an_artifact_is_found_under_its_identity_and_inputs_alone(tmp_path):
    data = artifact(tmp_path / "data", {"number": 1}, {})
    lm = artifact(tmp_path / "lm", {"size": (1, 2)}, {"data": data})  # a tuple is a list in the manifest
    assert find(tmp_path / "lm", "lm", {"size": (1, 2)}, {"data": data}) == lm
    assert find(tmp_path / "lm", "lm", {"size": (1, 3)}, {"data": data}) is None
    assert find(tmp_path / "lm", "lm", {"size": (1, 2)}, {"data": lm}) is None
    assert find(tmp_path / "nothing", "lm", {}, {}) is None


def test_a_damaged_artifact_is_not_found(tmp_path):
    artifact(tmp_path / "lm", {}, {})
    (tmp_path / "lm/weights").write_text("2")
    assert find(tmp_path / "lm", "lm", {}, {}) is None
