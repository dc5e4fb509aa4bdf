"""The stages that touch the model, started by ``runtime.launcher`` through DVC."""

from __future__ import annotations

import csv
import json
import shutil

import pytest

from offramp.artifacts.artifact import open_artifact
from tests.fixtures.pipeline_run import command
from tests.fixtures.reduce_params import reduce_params

pytestmark = pytest.mark.slow

TWO = "accelerate launch --multi_gpu --num_processes 2 --main_process_port 0"


def test_a_launcher_of_two_processes_leaves_the_results_of_one(reduced_run, tmp_path):
    """Another launcher is another command, so DVC runs these stages again, and only these."""
    project = shutil.copytree(reduced_run, tmp_path / "copy")
    reduce_params(project / "params.yaml", runtime__launcher=TWO)
    status = json.loads(command(project, "dvc", "status", "--json", "dvc.yaml").stdout)
    assert {stage for stage, changes in status.items() if "changed command" in changes} == {
        "pretrain",
        "collect",
        "sweep",
        "evaluate",
        "suitability",
    }

    states = open_artifact(project / "states/test", "states").digest
    ran = command(project, "dvc", "repro", "--single-item", "collect").stdout
    assert f"> {TWO} -m pipeline.collect" in ran
    assert open_artifact(project / "states/test", "states").digest == states
    assert command(project, "git", "diff", "--stat", "--", "metrics").stdout == ""
    command(project, "dvc", "repro", "--single-item", "evaluate")  # which the first process runs alone
    assert command(project, "git", "diff", "--stat", "--", "metrics", ":!metrics/timing.json").stdout == ""

    def curve(
        launcher,
    ):  # of a few steps in fp32: what differs in the last digit grows, to several per cent within twenty
        reduce_params(
            project / "params.yaml",
            runtime__launcher=launcher,
            pretrain__precision="fp32",
            pretrain__steps=8,
            pretrain__evaluate_every=2,
        )
        command(project, "dvc", "repro", "--single-item", "pretrain")
        return list(csv.DictReader((project / "metrics/plots/learning_curves.csv").open()))

    for row, wanted in zip(curve(TWO), curve("python"), strict=True):
        assert row["step"] == wanted["step"]
        assert float(row["calibration_ppl"]) == pytest.approx(float(wanted["calibration_ppl"]), rel=1e-4)
    assert not list((project / ".resume").iterdir())
