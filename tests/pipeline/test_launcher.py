"""The stages that touch the model, started by ``runtime.launcher`` through DVC."""

from __future__ import annotations

import csv
import json
import shutil

import pytest
from ruamel.yaml import YAML

from offramp.lineage.artifact import open_artifact
from tests.pipeline.conftest import command

TWO = "accelerate launch --multi_gpu --num_processes 2 --main_process_port 0"


def test_a_launcher_of_two_processes_leaves_the_results_of_one(project, tmp_path):
    """Another launcher is another command, so DVC runs these stages again, and only these."""
    project = shutil.copytree(project, tmp_path / "copy")
    yaml = YAML()
    params = yaml.load(project / "params.yaml")
    params["runtime"]["launcher"] = TWO
    yaml.dump(params, project / "params.yaml")
    status = json.loads(command(project, "dvc", "status", "--json", "dvc.yaml").stdout)
    assert {stage for stage, changes in status.items() if "changed command" in changes} == {"pretrain", "collect", "sweep", "evaluate"}

    def curve():
        return list(csv.DictReader((project / "metrics/plots/learning_curves.csv").open()))

    states, one = open_artifact(project / "states/test", "states").digest, curve()
    ran = command(project, "dvc", "repro", "--single-item", "collect").stdout
    assert f"> {TWO} -m pipeline.collect" in ran
    assert open_artifact(project / "states/test", "states").digest == states
    assert command(project, "git", "diff", "--stat", "--", "metrics").stdout == ""

    command(project, "dvc", "repro", "--single-item", "pretrain")
    for row, wanted in zip(curve(), one, strict=True):
        assert row["step"] == wanted["step"]
        # That gradients are those of one process is tested in tests/training; at this learning rate, in bf16, their last digits grow,
        # as between numbers of threads, to several per cent of the perplexity within twenty steps.
        assert float(row["calibration_ppl"]) == pytest.approx(float(wanted["calibration_ppl"]), rel=0.2)
    assert not list((project / ".resume").iterdir())
