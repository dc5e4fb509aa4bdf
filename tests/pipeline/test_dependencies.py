"""dvc.yaml declares exactly what each stage imports, reads and writes; studies declare their imports by a file of digests."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from offramp.lineage.code import CODE, code_of, import_graph, write_code
from offramp.params import Declared, load_params
from tests.conftest import REPOSITORY

STAGES = YAML(typ="safe").load((REPOSITORY / "dvc.yaml").read_text())["stages"]
OUTPUTS = ("outs", "metrics", "plots")


def names(entries):
    return [next(iter(entry)) if isinstance(entry, dict) else entry for entry in entries or []]


def expand(dependency):
    path = REPOSITORY / dependency
    return (
        {file.relative_to(REPOSITORY).as_posix() for file in path.rglob("*.py")}
        if path.is_dir()
        else {dependency}
    )


@pytest.fixture(scope="module")
def graph():
    return import_graph()


@pytest.mark.parametrize("stage", STAGES)
def test_code_dependencies_are_the_import_closure(stage, graph):
    """Lazy imports inside functions count too."""
    declared = {
        file
        for dependency in names(STAGES[stage]["deps"])
        for file in expand(dependency)
        if file.endswith(".py")
    }
    assert declared == set(code_of(f"pipeline.{stage}", graph, REPOSITORY))


ROOMS = [
    {"corpus", "nn"},
    {"models"},
    {"states"},
    {"exits"},
    {"training", "routing"},
    {"analysis"},
    {"report"},
]


def test_imports_point_one_way(graph):
    """corpus, nn -> models -> states -> exits -> training, routing -> report; analysis.bootstrap serves routing."""
    rooms = {room: number for number, names_of in enumerate(ROOMS) for room in names_of}

    def level(module):
        return 0 if module == "offramp.states.resampling" else rooms.get(module.split(".")[1], 0)

    for module in graph.modules:
        parts, direct = module.split("."), graph.find_modules_directly_imported_by(module)
        assert not (parts[0] == "offramp" and any(i.startswith("pipeline") for i in direct))
        if parts[0] == "offramp" and len(parts) > 2 and parts[1] in rooms:
            for imported in direct:
                if imported.startswith("offramp."):
                    assert level(imported) <= level(module), f"{module} imports {imported}"


def test_reading_an_undeclared_parameter_is_an_error():
    params = load_params("evaluate", REPOSITORY)
    assert isinstance(params, Declared) and params.routing.seed is not None and params.exits.confidence
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
    if event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)) and os.path.exists(arguments[0]):
        opened.add((os.path.abspath(os.fsdecode(arguments[0])), str(arguments[1] or "")))
sys.addaudithook(hook)
import importlib
importlib.import_module("pipeline." + sys.argv[1]).main()
root = os.getcwd() + os.sep
inside = {path[len(root):] for path, mode in opened if path.startswith(root)}
json.dump(sorted(inside), open(sys.argv[2], "w"))
"""


def test_stages_open_only_declared_files(project, tmp_path):
    """Every stage is run on a finished project under an audit hook: what it opens is a dependency or an output of its own."""
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
    project = shutil.copytree(
        project, tmp_path / "copy"
    )  # stages run by hand would leave other timings behind
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


def test_plots_and_metrics_of_dvc_exist_after_a_run(project):
    for stage in STAGES.values():
        for metric in names(stage.get("metrics")):
            assert json.loads((project / metric).read_text())
        for plot in stage.get("plots", []):
            ((table, settings),) = plot.items()
            rows = list(csv.DictReader((project / table).open()))
            assert rows and {settings["x"], settings["y"]} <= rows[0].keys()
    (figures,) = YAML(typ="safe").load((project / "dvc.yaml").read_text())["plots"]
    assert list((project / figures).glob("*.svg"))


STUDIES = YAML(typ="safe").load((REPOSITORY / "pipeline/studies/dvc.yaml").read_text())["stages"]


def study_of(stage):
    """Its module, which a second stage of the same study, on the text that its seed read, shares with the first."""
    return STUDIES[stage]["cmd"].split()[2].removeprefix("pipeline.studies.")


@pytest.mark.parametrize("stage", [stage for stage in STUDIES if stage != "code"])
def test_stages_of_studies_depend_on_the_code_of_their_module(stage):
    """On its digests alone: modules listed in dvc.yaml would cost every dvc command time."""
    code = [
        file
        for file in names(STUDIES[stage]["deps"])
        if file.endswith(".py") or Path(file).is_relative_to(CODE)
    ]
    assert code == [f"{CODE}/{study_of(stage)}.json"]


def test_code_of_every_study_is_written_each_time():
    """As an uncached output: `dvc pull` must not ask for what only the studies make."""
    assert STUDIES["code"]["always_changed"] and STUDIES["code"]["outs"] == [
        {CODE.as_posix(): {"cache": False}}
    ]


@pytest.fixture
def sources(tmp_path):
    for folder in ("src", "pipeline"):
        shutil.copytree(
            REPOSITORY / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info")
        )
    return tmp_path


def test_code_of_a_study_is_the_digest_of_every_module_it_imports(graph, sources):
    written = write_code(graph, sources)
    assert {path.stem for path in written.iterdir()} == {study_of(stage) for stage in STUDIES} - {"code"}
    for path in written.iterdir():
        module = f"pipeline.studies.{path.stem}"
        imported = {module, *graph.find_upstream_modules(module)} - {"offramp.params", "offramp.errors"}
        files = [f"{name.replace('.', '/')}.py" for name in imported]
        files = sorted(file if file.startswith("pipeline/") else f"src/{file}" for file in files)
        digests = {file: hashlib.sha256((REPOSITORY / file).read_bytes()).hexdigest() for file in files}
        assert path.read_text() == json.dumps(digests, indent=2) + "\n"


def test_a_module_changes_the_code_of_the_studies_that_import_it(graph, sources):
    def written():
        return {path.stem: path.read_text() for path in write_code(graph, sources).iterdir()}

    module, before = "src/offramp/nn/memory.py", written()
    assert written() == before
    with (sources / module).open("a") as file:
        file.write("# changed\n")
    after = written()
    importing = {study for study, code in before.items() if module in json.loads(code)}
    assert "segment_memory" in importing and importing < before.keys()
    assert {study for study in before if before[study] != after[study]} == importing
