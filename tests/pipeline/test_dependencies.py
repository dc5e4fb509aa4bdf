"""dvc.yaml declares exactly what each stage imports, reads and writes."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from offramp.params import Declared, Exits, load_params
from offramp.results.headline import Headline
from tests.conftest import REPOSITORY
from tests.fixtures.pipeline_run import command, copy_repository, stages_run

STAGES = YAML(typ="safe").load((REPOSITORY / "dvc.yaml").read_text())["stages"]
OUTPUTS = ("outs", "metrics", "plots")


def names(entries):
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries or []]


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "check"])
def test_a_stage_depends_on_its_code_by_one_file(stage):
    """On no module by name, and on no other stage's code."""
    dependencies = names(STAGES[stage]["deps"])
    assert [path for path in dependencies if path.startswith("build/code")] == [f"build/code/{stage}.json"]
    assert not [path for path in dependencies if path.startswith(("src", "pipeline"))]


def test_check_always_writes_the_code_of_the_others():
    """So that it depends on no code itself."""
    check = STAGES["check"]
    assert check["always_changed"] and "build/code" in check["outs"] and check["deps"] == ["params.yaml"]


def test_dvc_yaml_can_be_read_at_one_sitting():
    assert len((REPOSITORY / "dvc.yaml").read_text().splitlines()) < 280


def test_check_imports_no_torch(tmp_path):
    """It runs before every other stage, each time."""
    code = "import sys, pipeline.check; pipeline.check.main(); print('torch' in sys.modules)"
    said = command(copy_repository(tmp_path / "copy"), "python", "-c", code).stdout
    assert said.startswith("check: stage 1 of ") and said.splitlines()[1:] == ["False"]


@pytest.mark.parametrize("stage", ["report", "track"])
def test_what_only_reads_results_imports_no_torch(reduced_run, stage):
    """They run again with every new threshold. What they write is there already, byte for byte."""
    code = f"import sys, pipeline.{stage} as stage; stage.main(); print('torch' in sys.modules)"
    assert command(reduced_run, "python", "-c", code).stdout.endswith("False\n")
    assert command(reduced_run, "git", "status", "--porcelain").stdout == ""


@pytest.mark.parametrize(
    ("module", "stages"),
    [
        ("src/offramp/report/theme.py", {"report"}),
        ("src/offramp/corpus/windows.py", {"pretrain", "collect", "sweep", "evaluate", "suitability"}),
        ("src/offramp/report/style.css.j2", {"report", "track"}),  # a template beside modules of both
        (
            "src/offramp/params/schema.py",
            set(),
        ),  # the schema decides whether a run starts, not what it computes
    ],
)
def test_dvc_sees_a_changed_line_in_the_stages_that_import_it(reduced_run, tmp_path, module, stages):
    copy = shutil.copytree(reduced_run, tmp_path / "copy")
    with (copy / module).open("a") as file:
        file.write("# changed\n" if module.endswith(".py") else "{# changed #}\n")
    command(copy, "python", "-m", "pipeline.check")
    status = json.loads(command(copy, "dvc", "status", "--json").stdout)
    changed = {
        stage
        for stage, entries in status.items()
        for entry in entries
        if isinstance(entry, dict) and "changed deps" in entry
    }
    assert changed == stages


def test_a_fresh_clone_can_be_asked_for_its_status(reduced_run, tmp_path):
    """Nothing is built there yet; then all is brought back from a remote, and nothing runs."""
    copy = shutil.copytree(reduced_run, tmp_path / "copy")
    command(copy, "dvc", "remote", "add", "--default", "store", str(tmp_path / "store"))
    command(copy, "git", "commit", "--quiet", "--all", "--message", "remote")
    command(copy, "dvc", "push")
    clone = tmp_path / "clone"
    command(copy, "git", "clone", "--quiet", ".", str(clone))
    status = json.loads(command(clone, "dvc", "status", "--json").stdout)
    assert status["evaluate"][0]["changed deps"]["build/code/evaluate.json"] == "deleted"
    command(clone, "dvc", "pull")
    assert set(json.loads(command(clone, "dvc", "status", "--json").stdout)) == {"check", "track"}
    assert stages_run(command(clone, "dvc", "repro").stdout) == ["check", "track"]


def test_reading_an_undeclared_parameter_is_an_error():
    params = load_params("evaluate", REPOSITORY)
    assert isinstance(params, Declared) and params.routing.seed is not None and params.exits.confidence
    assert isinstance(params.exits, Exits)
    with pytest.raises(
        AttributeError, match=r"stage evaluate reads parameter exits\.label, which dvc\.yaml does not declare"
    ):
        _ = params.exits.label
    with pytest.raises(AttributeError, match="parameter pretrain"):
        _ = params.pretrain


def test_threshold_is_read_by_evaluate_alone():
    readers = [
        stage
        for stage, entry in STAGES.items()
        if any(param == "threshold" for param in entry.get("params", []))
    ]
    assert readers == ["evaluate"]


RECORDER = """
import json, os, sys
opened = set()
def hook(event, arguments):  # a directory-relative open (rmtree of an old output) shows up as a bare name
    path = arguments[0] if event == "open" else None
    if isinstance(path, (str, bytes, os.PathLike)) and os.path.exists(path):
        opened.add(os.path.abspath(os.fsdecode(path)))
sys.addaudithook(hook)
import importlib
importlib.import_module("pipeline." + sys.argv[1]).main()
root = os.getcwd() + os.sep
inside = {path[len(root):] for path in opened if path.startswith(root)}
json.dump(sorted(inside), open(sys.argv[2], "w"))
"""


def test_stages_open_only_declared_files(reduced_run, tmp_path):
    """Every stage is run on a finished project under an audit hook: it opens what it depends on or writes."""
    allowed_anyway = (
        "params.yaml",
        "dvc.yaml",
        ".dvc",
        ".git",
        "pipeline/",
        "src/",
        "metrics/.",
        ".resume",
        "build/.",
        "dvc.lock",
        "mlflow.db",
        "mlartifacts",
        ".mlflow",
        "__pycache__",
    )
    # stages run by hand would leave other timings behind
    project = shutil.copytree(reduced_run, tmp_path / "copy")
    for stage in ("check", "prepare", "collect", "train_exits", "sweep", "evaluate", "suitability", "report"):
        listing = tmp_path / f"{stage}.json"
        environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "PYTHONDONTWRITEBYTECODE": "1"}
        subprocess.run(
            [sys.executable, "-c", RECORDER, stage, str(listing)], cwd=project, env=environment, check=True
        )
        declared = [
            *names(STAGES[stage]["deps"]),
            *(name for kind in OUTPUTS for name in names(STAGES[stage].get(kind))),
        ]
        for path in json.loads(listing.read_text()):
            inside = any(path == name or path.startswith(name + "/") for name in declared)
            # an artifact is written in a hidden folder beside its place and renamed
            partial = any(
                Path(path).is_relative_to(Path(name).with_name(f".{Path(name).name}.partial"))
                for name in declared
            )
            assert inside or partial or path.startswith(allowed_anyway) or path in (".", ""), (
                f"{stage} opened {path}"
            )


def test_dvc_remembers_the_runs_of_every_stage():
    """It does not where a plain output is uncached: ``metrics`` and ``plots`` may be."""
    for stage in STAGES.values():
        assert not [
            out
            for out in stage.get("outs", [])
            if isinstance(out, dict) and not next(iter(out.values())).get("cache", True)
        ]


def test_the_headline_is_the_only_metric():
    assert [metric for stage in STAGES.values() for metric in names(stage.get("metrics"))] == [Headline.path]


def test_plots_and_metrics_of_dvc_exist_after_a_run(reduced_run):
    for stage in STAGES.values():
        for plot in stage.get("plots", []):
            ((file, settings),) = plot.items()
            if file.endswith(".json"):  # results that git keeps; DVC draws nothing of them
                assert json.loads((reduced_run / file).read_text())
                continue
            rows = list(csv.DictReader((reduced_run / file).open()))
            assert rows and {settings["x"], settings["y"]} <= rows[0].keys()
    (figures,) = YAML(typ="safe").load((reduced_run / "dvc.yaml").read_text())["plots"]
    assert list((reduced_run / figures).glob("*.svg"))


def test_the_headline_is_what_the_other_results_say(reduced_run):
    shown = json.loads(command(reduced_run, "dvc", "metrics", "show", "--json").stdout)
    headline = json.loads((reduced_run / Headline.path).read_text())
    said = {
        name: value for name, value in headline.items() if value is not None
    }  # DVC leaves out what is null
    assert shown[""]["data"] == {Headline.path: {"data": said}} and len(said) >= 9
    assert Headline.read(reduced_run) == Headline.of_project(reduced_run)
