"""The command measures what is asked for, keeps its rows, and keeps none of a quick look."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

import benchmarks.__main__ as command
from benchmarks import measure
from benchmarks.measure import Median, Row, Skipped, rounds
from offramp.results.benchmarks import read_benchmarks


@pytest.fixture
def measured(monkeypatch, tmp_path):
    """The command with two benchmarks, one of which can be told to be skipped; writes below a folder."""

    def fine():
        yield Row("fine_speed", Median.of([1.0] * rounds(9)), "x speed", ">= 2", "another")

    def sometimes():
        if skip:
            raise Skipped("there is no checkpoint")
        yield Row("once", 3.0, "s", None, "nothing")

    skip = []
    for name, run in (("fine", fine), ("sometimes", sometimes)):
        monkeypatch.setitem(sys.modules, f"benchmarks.{name}", SimpleNamespace(run=run))
    monkeypatch.setattr(command, "NAMES", ("fine", "sometimes"))
    monkeypatch.setattr(command, "QUICK_NAMES", ("fine",))
    monkeypatch.setattr(command, "OUT", tmp_path / "benchmarks.json")
    monkeypatch.setattr(measure, "QUICK", False)

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["benchmarks", *words])
        command.main()
        return read_benchmarks(command.OUT) if command.OUT.exists() else None

    return SimpleNamespace(run=run, skip=skip)


def test_all_of_them_write_their_rows_and_the_minutes_they_took(measured, capsys):
    rows = measured.run()
    assert set(rows) == {"fine_speed", "once", "minutes_of_fine", "minutes_of_sometimes", "minutes_of_all"}
    assert (rows["fine_speed"].verdict, rows["fine_speed"].n) == ("missed", 9)
    assert (rows["minutes_of_all"].bar, rows["minutes_of_all"].verdict) == ("<= 90", "not established")
    out = capsys.readouterr().out
    assert "fine: 0 s" in out and "all of them: 0.0 minutes" in out and "missed" in out


def test_the_minutes_of_all_are_kept_only_where_all_were_run(measured):
    assert set(measured.run("sometimes")) == {"once", "minutes_of_sometimes"}
    measured.skip.append(True)
    assert "minutes_of_all" not in measured.run()


def test_a_quick_look_writes_nothing(measured, capsys):
    assert measured.run("--quick") is None
    out = capsys.readouterr().out
    assert "fine_speed" in out and "sometimes" not in out


def test_what_a_quick_look_runs_exists():
    assert set(command.QUICK_NAMES) < set(command.NAMES)
