"""The classes of results have the shape of the files in metrics/, byte for byte, and refuse any other."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import ValidationError
from ruamel.yaml import YAML

from offramp.errors import UserError
from offramp.results.benchmarks import PATH, ParetoPoint, read_benchmarks, write_benchmarks
from offramp.results.corpus import Corpus
from offramp.results.files import METRICS_FILES, TABLES
from offramp.results.headline import Headline
from offramp.results.pretraining import LearningCurve, Pretraining
from offramp.results.routing import PositionShare, ReliabilityBin, Routing, Timing
from offramp.results.shape import MetricsFile, TableRow, by_exit
from offramp.results.suitability import Bound
from tests.conftest import REPOSITORY

TIMING = {
    "wall_saving": 0.03,
    "wall_saving_interval": [0.01, 0.05],
    "skipping_saving": 0.03,
    "full_seconds": 1.5,
    "routed_seconds": 1.4,
    "full_tokens_per_second": 24000.0,
    "routed_tokens_per_second": 25000.0,
    "pairs": 9,
    "machine": "x86_64",
    "origin": {
        "date": "2026-05-04 12:30 UTC",
        "commit": None,
        "changed": False,
        "dvc_experiment": None,
        "mlflow_experiment": "offramp",
        "mlflow_run": "threshold=0.8 (no commit)",
    },
}


def put(root: Path, kind: type[MetricsFile] | type[TableRow], text: str | bytes) -> Path:
    file = root / kind.path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


@pytest.mark.parametrize("kind", METRICS_FILES, ids=lambda kind: Path(kind.path).name)
def test_a_metrics_file_of_the_repository_is_written_as_it_was_read(tmp_path, kind):
    kind.read(REPOSITORY).write(tmp_path)
    assert (tmp_path / kind.path).read_bytes() == (REPOSITORY / kind.path).read_bytes()


@pytest.mark.parametrize("kind", [*TABLES, ParetoPoint], ids=lambda kind: Path(kind.path).name)
def test_a_table_of_the_repository_is_written_as_it_was_read(tmp_path, kind):
    kind.write(tmp_path, kind.read(REPOSITORY))
    assert (tmp_path / kind.path).read_bytes() == (REPOSITORY / kind.path).read_bytes()


def test_benchmarks_of_the_repository_are_written_as_they_were_read(tmp_path):
    write_benchmarks(tmp_path / PATH, read_benchmarks(REPOSITORY / PATH).values())
    assert (tmp_path / PATH).read_bytes() == (REPOSITORY / PATH).read_bytes()
    (tmp_path / PATH).write_text('[{"name": "a"}]')
    with pytest.raises(UserError, match=r"0\.value: Field required"):
        read_benchmarks(tmp_path / PATH)


def test_every_file_that_dvc_shows_has_a_class_and_axes_that_are_its_columns():
    stages = YAML(typ="safe").load((REPOSITORY / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    shown = {
        kind: [entry for stage in stages.values() for entry in stage.get(kind, ())]
        for kind in ("metrics", "plots")
    }
    metrics, plots = ({path: plot for entry in shown[kind] for path, plot in entry.items()} for kind in shown)
    tables = {kind.path: kind for kind in TABLES}
    assert metrics.keys() == {Headline.path}
    assert metrics.keys() | plots.keys() == {kind.path for kind in METRICS_FILES} | set(tables)
    for path in tables:
        assert {plots[path]["x"], plots[path]["y"]} <= set(tables[path].columns()), path


def test_no_two_results_share_a_file():
    paths = [kind.path for kind in (*METRICS_FILES, *TABLES)]
    assert len(paths) == len(set(paths))


def test_keys_that_were_not_given_are_left_out_and_null_stays_null(tmp_path):
    Pretraining(
        parameters=12,
        tokens_seen=34,
        **{"block 0": {"best_step": 1, "steps": 2, "calibration_ppl": 3.5}},
    ).write(tmp_path)
    assert json.loads((tmp_path / Pretraining.path).read_text())["block 0"].keys() == {
        "best_step",
        "steps",
        "calibration_ppl",
    }
    assert Pretraining.read(tmp_path).phases["block 0"].calibration_kl is None


@pytest.mark.parametrize(("kl", "column"), [(None, False), (0.25, True)])
def test_a_column_that_no_row_was_given_is_left_out(tmp_path, kl, column):
    given = {} if kl is None else {"calibration_kl": kl}
    row = LearningCurve(
        phase="joint", exit=0, step=1, tokens=2, train_loss=None, calibration_ppl=3.0, **given
    )
    LearningCurve.write(tmp_path, [row])
    head, cells = (tmp_path / LearningCurve.path).read_text().splitlines()
    assert head.endswith(",calibration_kl") == column
    assert cells.startswith("joint,0,1,2,,3.0"), "an empty cell is None"
    assert LearningCurve.read(tmp_path) == [row]


def test_a_table_without_rows_still_has_its_columns(tmp_path):
    ReliabilityBin.write(tmp_path, [])
    assert (tmp_path / ReliabilityBin.path).read_text() == "exit,confidence,agreement,tokens\n"
    assert ReliabilityBin.read(tmp_path) == []


def test_numbers_that_are_not_finite_stay_in_tables_and_are_refused_in_metrics(tmp_path):
    row = PositionShare(position=0, exit=0, share=float("inf"))
    PositionShare.write(tmp_path, [row])
    assert PositionShare.read(tmp_path) == [row]
    with pytest.raises(UserError, match=r"metrics/timing\.json: wall_saving = inf is no finite number"):
        Timing(**TIMING | {"wall_saving": float("inf")}).write(tmp_path)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "is not valid JSON"),
        (b"\xff\xfe", "is not a text file"),
        ("[]", "has another shape than expected: its contents"),
        (json.dumps({key: TIMING[key] for key in list(TIMING)[1:]}), "wall_saving: Field required"),
        (json.dumps(TIMING | {"pairs": "9"}), "pairs: Input should be a valid integer"),
        (json.dumps(TIMING | {"pairs": 9.5}), "pairs: Input should be a valid integer"),
        (json.dumps(TIMING | {"pears": 9}), "pears: Extra inputs are not permitted"),
    ],
)
def test_a_metrics_file_of_another_shape_is_named_with_field_and_remedy(tmp_path, text, complaint):
    file = put(tmp_path, Timing, text)
    with pytest.raises(UserError) as raised:
        Timing.read(tmp_path)
    assert str(raised.value).startswith(str(file)) and complaint in str(raised.value)
    assert "delete it and run `dvc repro`" in str(raised.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is not a CSV table"),
        ("position,exit\n0,0\n", "has no column share"),
        ("position,exit,share\n0,0,much\n", "line 2, share: Input should be a valid number"),
        ("position,exit,share\n0,0,0.5\n0,0.5,0.5\n", "line 3, exit: Input should be a valid integer"),
        ("position,exit,share\n0,0,\n", "line 2, share"),
        ("position,exit,share\n0,0\n", "has 2 cells in line 2 and 3 columns"),
        ("position,exit,share,colour\n0,0,0.5,red\n", "line 2, colour: Extra inputs"),
    ],
)
def test_a_table_of_another_shape_is_named_with_line_and_column(tmp_path, text, complaint):
    file = put(tmp_path, PositionShare, text)
    with pytest.raises(UserError) as raised:
        PositionShare.read(tmp_path)
    assert str(raised.value).startswith(str(file)) and complaint in str(raised.value)


@pytest.mark.parametrize("kind", [Corpus, Routing, ReliabilityBin])
def test_a_missing_file_is_named_with_the_remedy(tmp_path, kind):
    with pytest.raises(UserError, match=r"is missing; run `dvc repro`"):
        kind.read(tmp_path)


def test_before_its_stage_has_run_there_is_no_result(tmp_path):
    assert Timing.read_if_there(tmp_path) is None
    Timing(**TIMING).write(tmp_path)
    assert Timing.read_if_there(tmp_path) == Timing(**TIMING)


def test_a_result_of_another_shape_cannot_be_put_together():
    with pytest.raises(ValidationError):
        Bound(flop_saving="a half", ppl=20.0)
    with pytest.raises(ValidationError):
        Bound(flop_saving=0.5, ppl=20.0, accuracy=0.3)


def test_exits_are_in_order_of_depth_not_of_their_names():
    assert by_exit({f"exit_{exit}": exit for exit in (10, 2, 0, 1, 3, 4, 5, 6, 7, 8, 9)}) == list(range(11))
