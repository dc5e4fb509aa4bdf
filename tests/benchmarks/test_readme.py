"""The tables of docs/benchmarks.md say what metrics/benchmarks.json holds."""

from __future__ import annotations

import shutil

from ruamel.yaml import YAML

from benchmarks.projects import set_params
from benchmarks.readme import TABLES, Line, table
from benchmarks.smollm2 import documented
from offramp.params import read_params
from offramp.results.benchmarks import PATH, Benchmark, read_benchmarks
from tests.conftest import REPOSITORY


def test_a_record_that_changes_changes_its_line_alone():
    records = read_benchmarks(REPOSITORY / PATH)
    better = records["collect_over_forward"].model_copy(update={"value": 0.999, "met": True})
    old, new = (table("pipeline", of).splitlines() for of in (records, records | {better.name: better}))
    (changed,) = [line for line, before in zip(new, old, strict=True) if line != before]
    assert changed.startswith("| `collect`") and "| 1.00 / " in changed


def test_a_record_that_is_missing_takes_its_line_with_it():
    records = read_benchmarks(REPOSITORY / PATH)
    whole = table("compute", records).splitlines()
    (left_out,) = [
        line
        for line in whole
        if line not in table("compute", without(records, "routed_30_exit")).splitlines()
    ]
    assert left_out.startswith("| 30 % leave |")


def without(records, name):
    return {key: record for key, record in records.items() if key != name}


def test_every_line_has_records():
    needed = {name for lines in TABLES.values() for line in lines for name in line.names.split()}
    assert needed <= set(read_benchmarks(REPOSITORY / PATH))


def record(name, value, met=None, interval=None):
    return Benchmark(
        name=name,
        value=value,
        unit="x",
        bar=None,
        held_against="another",
        n=5,
        interval=interval,
        met=met,
        machine="none",
    )


def test_a_line_says_how_sure_it_is_and_what_was_missed():
    records = {
        row.name: row
        for row in (
            record("one", 1.234, True, [1.1, 1.3]),
            record("a_batch1", 0.5, False),
            record("a_batch4", 0.9, True),
        )
    }
    assert Line("it", "that", "one", "{}x", "1x").render(records) == "| it | that | 1.23x [1.10, 1.30] | 1x |"
    assert (
        Line("it", "that", "a_batch1 a_batch4", bar="0.8").render(records)
        == "| it | that | 0.50 / 0.90 | 0.8, **missed** at batch 1 |"
    )


def test_the_documented_run_on_smollm2_sets_parameters_that_exist(tmp_path):
    """The benchmark runs the command as docs/checkpoints.md has it."""
    program, *words = documented()
    assert (program, words[:2]) == ("dvc", ["exp", "run"]) and words[2::2] == ["-S"] * (len(words) // 2 - 1)
    params = tmp_path / "params.yaml"
    shutil.copy(REPOSITORY / "params.yaml", params)
    set_params(
        params,
        {
            name: YAML(typ="safe").load(value)
            for name, _, value in (word.partition("=") for word in words[3::2])
        },
    )
    documented_params = read_params(params)
    assert (
        documented_params.model.name_or_path == "build/smollm2"
        and documented_params.model.exits_after == [10, 20]
        and documented_params.pretrain.method == "frozen"
    )
    assert documented_params.routing.curve_fractions == [0.3, 0.7]
