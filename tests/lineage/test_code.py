"""A stage's code is every file it imports, however far away, and the versions of libraries that compute."""

from __future__ import annotations

import hashlib
import json
import shutil
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.fixtures.pipeline_run import command

WRITE = """
import sys, pipeline
from pathlib import Path
from offramp.lineage.code import write_code
write_code({name: f"pipeline.{name}" for name in sys.argv[1:]}, Path("build/code"), Path("."))
"""
STAGES = ("prepare", "pretrain", "train_exits", "evaluate", "report")


@pytest.fixture
def tree(tmp_path) -> Path:
    """A copy of the sources, to be edited."""
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in ("src", "pipeline"):
        shutil.copytree(REPOSITORY / folder, tmp_path / folder, ignore=ignored)
    return tmp_path


def write(tree: Path) -> dict[str, dict[str, str]]:
    """The code of each of the stages, as a process started in the tree writes it."""
    command(tree, "python", "-c", WRITE, *STAGES)
    return {file.stem: json.loads(file.read_text()) for file in (tree / "build/code").iterdir()}


def changed_by(tree: Path, file: str, line: str = "# changed\n") -> set[str]:
    """The stages whose code is another once ``line`` is added to ``file``."""
    before = write(tree)
    with (tree / file).open("a") as source:
        source.write(line)
    after = write(tree)
    return {stage for stage in STAGES if before[stage] != after[stage]}


def test_files_are_known_by_digest_and_libraries_by_version(tree):
    code = write(tree)
    evaluate = code["evaluate"]
    for file in ("pipeline/evaluate.py", "pipeline/_inputs.py", "src/offramp/nn/layers.py"):
        assert evaluate[file] == hashlib.sha256((tree / file).read_bytes()).hexdigest()
    assert evaluate["torch"] == version("torch").split("+")[0]
    assert "tokenizers" in code["prepare"] and "torch" not in code["prepare"]
    assert "src/offramp/report/style.css.j2" in code["report"]
    # a package's __init__ runs before its modules
    assert {
        "pipeline/__init__.py",
        "src/offramp/__init__.py",
        "src/offramp/nn/__init__.py",
    } <= evaluate.keys()


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("src/offramp/states/collect.py", set()),
        ("src/offramp/training/losses.py", {"pretrain"}),
        ("src/offramp/exits/ranking.py", {"train_exits", "evaluate"}),
        ("src/offramp/artifacts/artifact.py", set(STAGES)),
        ("src/offramp/params/schema.py", set()),
        ("src/offramp/systems/ensemble.py", set()),
        ("src/offramp/lineage/code.py", set()),
    ],
)
def test_a_changed_line_changes_the_code_of_whoever_imports_it(tree, file, stages):
    assert changed_by(tree, file) == stages


def test_an_import_inside_a_function_is_followed(tree):
    lazy = "def later():\n    from offramp.states import collect\n    return collect\n"
    assert changed_by(tree, "pipeline/prepare.py", lazy) == {"prepare"}
    assert "src/offramp/states/collect.py" in write(tree)["prepare"]
    assert "torch" in write(tree)["prepare"]


def test_what_only_the_schema_imports_is_no_code_of_a_result(tree):
    (tree / "src/offramp/bounds.py").write_text("LEAST = 0\n")
    assert changed_by(tree, "src/offramp/params/schema.py", "from offramp import bounds\n") == set()


def test_the_same_code_gives_the_same_bytes_and_stages_that_are_gone_leave_no_file(tree):
    write(tree)
    folder = tree / "build/code"
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    (folder / "removed.json").write_text("{}")
    write(tree)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_changed_line_is_another_identity_of_what_is_cached(tree):
    """Of training snapshots, for one: what older code left is not found."""
    digest = (
        "import pipeline; from pathlib import Path; from offramp.lineage.code import code_digest; "
        "print(code_digest('pipeline.pretrain', Path('.')))"
    )
    before = command(tree, "python", "-c", digest).stdout
    assert command(tree, "python", "-c", digest).stdout == before
    with (tree / "src/offramp/training/losses.py").open("a") as source:
        source.write("# changed\n")
    assert command(tree, "python", "-c", digest).stdout != before


@pytest.mark.parametrize(
    ("library", "becomes", "stages"),
    [
        ("torch", "99.0", {"pretrain", "train_exits", "evaluate"}),
        ("tokenizers", "99.0", {"prepare", "evaluate", "report"}),
        ("torch", f"{version('torch').split('+')[0]}+another_machine", set()),
    ],
)
def test_another_version_of_a_library_changes_the_code_of_whoever_computes_with_it(
    tree, library, becomes, stages
):
    before = write(tree)
    upgrade = (
        "import importlib.metadata as metadata; installed = metadata.version\n"
        f"metadata.version = lambda name: {becomes!r} if name == {library!r} else installed(name)\n"
    )
    command(tree, "python", "-c", upgrade + WRITE, *STAGES)
    after = {file.stem: json.loads(file.read_text()) for file in (tree / "build/code").iterdir()}
    assert {stage for stage in STAGES if before[stage] != after[stage]} == stages
