"""Benchmarks' models are made by the pipeline in a clone: with the code that is committed, and once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import projects
from benchmarks.measure import Skipped

pytestmark = pytest.mark.slow

STAGE = """
stages:
  train:
    cmd: python train.py
    params: [steps]
    deps: [train.py]
    outs: [model]
    metrics:
      - score.json:
          cache: false
"""
TRAIN = """
from pathlib import Path
runs = Path("runs.log")
runs.write_text((runs.read_text() if runs.exists() else "") + "run\\n")
Path("model").write_text(Path("params.yaml").read_text())
Path("score.json").write_text("{}")
"""


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    root = tmp_path / "checkout"
    (root / "src").mkdir(parents=True)
    for name, text in {
        "dvc.yaml": STAGE,
        "train.py": TRAIN,
        "params.yaml": "steps: 1000  # of training\n",
        ".gitignore": ".benchmarks\nmodel\nruns.log\n",
    }.items():
        (root / name).write_text(text)
    for command in (
        "git init -q",
        "git config user.name a",
        "git config user.email a@b",
        f"{sys.executable} -m dvc init -q",
        "git add -A",
        "git commit -qm first",
    ):
        subprocess.run(command.split(), cwd=root, check=True)
    monkeypatch.setattr(projects, "ROOT", root)
    monkeypatch.setattr(projects, "FOLDER", root / ".benchmarks")
    return root


def test_a_model_is_made_once_and_this_checkout_stays_as_it_is(root):
    for _ in range(2):
        clone = projects.reproduced("short", {"steps": 5}, "train")
    assert (clone / "model").read_text() == "steps: 5     # of training\n"
    assert (clone / "runs.log").read_text() == "run\n"
    assert not (root / "model").exists() and "1000" in (root / "params.yaml").read_text()


def test_code_that_is_committed_later_is_what_runs(root):
    projects.reproduced("short", {"steps": 5}, "train")
    (root / "train.py").write_text(TRAIN.replace('+ "run', '+ "later'))
    subprocess.run(["git", "commit", "-qam", "later"], cwd=root, check=True)
    clone = projects.reproduced("short", {"steps": 5}, "train")
    assert (clone / "runs.log").read_text() == "run\nlater\n"


def test_changes_that_are_not_committed_are_refused_by_name(root):
    (root / "params.yaml").write_text("steps: 7\n")
    with pytest.raises(Skipped, match=r"params\.yaml"):
        projects.reproduced("short", {"steps": 5}, "train")


def test_a_stage_that_fails_is_an_error_and_no_skipped_benchmark(root):
    (root / "train.py").write_text("raise SystemExit('out of steps')")
    subprocess.run(["git", "commit", "-qam", "broken"], cwd=root, check=True)
    with pytest.raises(RuntimeError, match="dvc repro"):
        projects.reproduced("short", {"steps": 5}, "train")
