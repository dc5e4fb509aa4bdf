"""The tables of docs/benchmarks.md say what metrics/benchmarks.json holds."""

from __future__ import annotations

import ast
import inspect
import re
import shutil
from collections.abc import Iterator

from ruamel.yaml import YAML

from benchmarks.commands import SMOLLM2_RUN
from benchmarks.measure import Row
from benchmarks.projects import set_params
from benchmarks.readme import TABLES, Line, table
from benchmarks.smollm2 import EXITS
from benchmarks.smollm2 import words as command_words
from offramp.params import read_params
from offramp.results.benchmarks import PATH, Benchmark, read_benchmarks, verdict
from tests.conftest import REPOSITORY


def test_a_record_that_changes_changes_its_line_alone():
    records = read_benchmarks(REPOSITORY / PATH)
    better = records["collect_over_forward"].model_copy(update={"value": 0.999})
    old, new = (table("pipeline", of).splitlines() for of in (records, records | {better.name: better}))
    (changed,) = [line for line, before in zip(new, old, strict=True) if line != before]
    assert "the last exit's logits alone" in changed and "| 1.00 [" in changed


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


def calls(*names: str) -> Iterator[ast.Call]:
    """Calls of functions that have these names, in all benchmarks."""
    for file in (REPOSITORY / "benchmarks").rglob("*.py"):
        for call in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and getattr(call.func, "id", "") in names and call.args:
                yield call


def written_rows() -> list[str]:
    """Patterns of the names of all rows that benchmarks write, as their calls of ``Row`` or ``row`` say."""
    patterns = []
    for call in calls("Row", "row"):
        parts = getattr(call.args[0], "values", [call.args[0]])
        patterns.append(
            "".join(re.escape(part.value) if isinstance(part, ast.Constant) else ".+" for part in parts)
        )
    return [pattern for pattern in patterns if pattern != ".+"]


def test_every_row_is_given_what_a_row_has():
    """Types of benchmarks are not checked, and most of them run for minutes before they make a row."""
    fields = len(inspect.signature(Row).parameters)
    assert {len(call.args) + len(call.keywords) for call in calls("Row")} == {fields}


def test_every_line_is_of_rows_that_benchmarks_write_and_no_row_is_left_from_another_time():
    needed = {name for lines in TABLES.values() for line in lines for name in line.names.split()}
    measured = {name for name in read_benchmarks(REPOSITORY / PATH) if not name.startswith("checkpoint_")}
    patterns = written_rows()
    strays = {name for name in needed | measured if not any(re.fullmatch(one, name) for one in patterns)}
    assert not strays and len(patterns) > 40


def record(name, value, bar=None, interval=None, n=5):
    return Benchmark(
        name=name,
        value=value,
        unit="x",
        bar=bar,
        held_against="another",
        n=n,
        interval=interval,
        verdict=verdict(value, interval, bar),
        machine="none",
        commit="abc1234",
        date="2026-11-30",
    )


def test_a_line_says_how_sure_it_is_how_often_it_was_measured_and_what_that_makes_of_its_bar():
    records = {
        row.name: row
        for row in (
            record("one", 1.234, ">= 1", [1.1, 1.3]),
            record("a_batch1", 0.5, ">= 0.8", [0.4, 0.6], 8),
            record("a_batch4", 0.9, ">= 0.8", [0.75, 0.95], 12),
            record("rise", 0.912, None, [-0.1, 1.2]),
            record("once", 3.0, "<= 2", n=1),
        )
    }

    def cells(*of, **more):
        return Line("it", "that", *of, **more).render(records).strip("| ").split(" | ")[2:]

    assert cells("one", "{}x") == ["1.23 [1.10, 1.30]x", "5", ">= 1", "met"]
    assert cells("a_batch1 a_batch4") == [
        *("0.50 [0.40, 0.60] / 0.90 [0.75, 0.95]", "8 / 12", ">= 0.8", "**missed** / not established"),
    ]
    assert cells("one rise", "{:.1f}x, {:+.2f} %") == [
        *("1.2 [1.1, 1.3]x, +0.91 [-0.10, 1.20] %", "5", ">= 1 / -", "met / -"),
    ]
    assert cells("once", "{} s", 0) == ["3 s", "1", "<= 2", "not established"]


def test_the_documented_run_on_smollm2_sets_parameters_that_exist(tmp_path):
    """The benchmark runs the command as docs/checkpoints.md has it."""
    assert SMOLLM2_RUN in (REPOSITORY / "docs/checkpoints.md").read_text(encoding="utf-8")
    program, *words = command_words()
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
        and documented_params.model.exits_after == list(EXITS)
        and documented_params.pretrain.method == "frozen"
    )
    assert documented_params.routing.curve_fractions == [0.3, 0.7]
