"""Where the figures of a page come from: the functions that templates call.

    json(file, key, form)               a value of a JSON file; keys of objects joined by points
    row(file, column, form, **where)    the cell of the one row of a CSV file that has these values
    rows(file, **where)                 all such rows, as dicts of numbers and text
    param(key)                          a value of params.yaml
    study(name, corpus, key, form)      a corrected value of a study with its interval over random seeds
    seeds(name, corpus)                 the number of these seeds
    paired(name, corpus, key, minus, form)  a difference of two of its values, paired by random seed
    not_run(corpus)                     the studies that run on a text and have no results of it
    claims(**where), questions(**where) how many rows of the ledger have these values
    benchmark(name, form)               a record of metrics/benchmarks.json
    benchmark_table(name)               a table of such records
    has_benchmark(name)                 whether there is such a record: some wait for a long run
    benchmark_machine(name)             what it was measured on
    benchmark_origins()                 of which commits and machines all records are, most of them first
    growth_table()                      what stages need as the corpus grows; empty where it was not measured
    growth()                            that measurement, for its date, machine and commit
    smollm2_command()                   the run of the pipeline on SmolLM2 that is documented and measured
    measured(entry, value, form)        a value of docs/measurements.yaml
    measurement(entry)                  the whole entry, for its date, machine, command, n
    headline(part)                      what `dvc repro` prints at its end: "all", its "table", its "sentence"
    checkpoint_study(device)            the tables of the study of a checkpoint, or that it was not run
    checkpoint_answer(device)           what it found, in a few sentences
    stage_map()                         the stages of dvc.yaml as a mermaid flowchart
    parameters()                        every knob with default, bounds and words (docs/parameters.py)
    constant(value, why)                a constant of definition, and why it is no figure
    given(condition, words)             words that stand only while files bear them out

With a ``form`` a figure becomes text: a format specification of Python, where "%" and "M" at its end stand
for per cent and millions. An interval follows in brackets where there is one. Without a form it is a number,
or what has ``value``, ``low`` and ``high``. What cannot be looked up becomes a problem that names template,
line, call and file, and an ``Unknown``, so that one pass over a template tells all that is wrong with it.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from io import StringIO
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from ruamel.yaml import YAML

from benchmarks.commands import SMOLLM2_RUN
from benchmarks.readme import growth_table, table
from docs.measurements import PATH as MEASUREMENTS
from docs.measurements import Measured, Measurement, read_measurements
from docs.parameters import ParameterSection, parameter_sections
from docs.stages import mermaid
from docs.writing import UNKNOWN, Unknown, listed, written
from offramp.errors import UserError
from offramp.report.headline import headline_sentence, headline_table
from offramp.results.benchmarks import PATH as BENCHMARKS
from offramp.results.benchmarks import Benchmark, read_benchmarks
from offramp.results.growth import Growth
from studies.checkpoint.page import answer, page
from studies.checkpoint.results import read, results_path
from studies.common.results import Interval, over_seeds, read_results, read_seeds, result_path, seeds_path
from studies.common.study import studies

WIDTH = 120
"""Columns of what is quoted from a console."""


class Figures:
    """Looks figures up below a root, and gathers what is wrong with the templates that ask for them."""

    def __init__(self, root: Path):
        self.root = root
        self.problems: list[str] = []
        self.used: set[str] = set()
        """Entries of measurements.yaml that some template asked for."""
        self.measurements = cache(lambda: read_measurements(root))
        self._json = cache(self._read_json)
        self._csv = cache(self._read_csv)
        self._benchmarks = cache(lambda: read_benchmarks(root / BENCHMARKS))

    def functions(self) -> dict[str, Callable[..., Any]]:
        """What templates may call, by name."""
        functions: list[Callable[..., Any]] = [
            *(self.json, self.row, self.rows, self.param, self.study, self.seeds, self.paired, self.not_run),
            *(self.claims, self.questions, self.benchmark, self.has_benchmark, self.benchmark_table),
            *(
                self.benchmark_machine,
                self.benchmark_origins,
                self.growth_table,
                self.growth,
                self.smollm2_command,
                self.measured,
                self.measurement,
                self.checkpoint_study,
                self.checkpoint_answer,
                self.headline,
                self.stage_map,
                self.parameters,
                self.constant,
                self.given,
            ),
        ]
        return {function.__name__: self._watched(function.__name__, function) for function in functions}

    def _watched(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            if any(isinstance(value, Unknown) for value in (*arguments, *named.values())):
                return arguments[1] if name == "given" else UNKNOWN
            try:
                return function(*arguments, **named)
            except UserError as error:
                given = [repr(value) for value in arguments]
                given += [f"{key}={value!r}" for key, value in named.items()]
                self.problems.append(f"{_place()}: {name}({', '.join(given)}): {error}")
                return UNKNOWN

        return call

    # Files ------------------------------------------------------------------------------------------------

    def json(self, file: str, key: str, form: str | None = None, interval: str | None = None) -> Any:
        """``interval`` is the key of [low, high]."""
        value = _at(file, self._json(file), key)
        bounds = _at(file, self._json(file), interval) if interval else None
        return _as_asked(value, form, bounds, f"{file}: {key}")

    def row(self, file: str, column: str, form: str | None = None, **where: Any) -> Any:
        """The interval is that of the columns <column>_low and <column>_high, where there are both."""
        matching = self.rows(file, **where)
        if len(matching) != 1:
            raise UserError(f"{file} has {len(matching)} rows of {_words(where)}, not one")
        (row,) = matching
        if column not in row:
            raise UserError(f"{file} has no column {column}")
        bounds = [bound for end in ("low", "high") if (bound := row.get(f"{column}_{end}")) is not None]
        return _as_asked(row[column], form, bounds if len(bounds) > 1 else None, f"{file}: {column}")

    def rows(self, file: str, **where: Any) -> list[dict[str, Any]]:
        table = self._csv(file)
        if unknown := [name for name in where if table and name not in table[0]]:
            raise UserError(f"{file} has no column {', '.join(unknown)}")
        return [row for row in table if all(row[name] == value for name, value in where.items())]

    def param(self, key: str, form: str | None = None) -> Any:
        return _as_asked(
            _at("params.yaml", self._json("params.yaml"), key), form, None, f"params.yaml: {key}"
        )

    # Studies ----------------------------------------------------------------------------------------------

    def study(self, name: str, corpus: str, key: str, form: str | None = None) -> Any:
        file = result_path(Path("studies"), name, corpus)
        results = read_results(self.root / "studies", name, corpus)
        if results is None or results.corrected is None:
            raise UserError(f"{file} has no corrected results")
        if key not in results.corrected.values:
            raise UserError(f"{file} has no corrected value {key}")
        return _with_interval(results.corrected.values[key], form, f"{file}: {key}")

    def seeds(self, name: str, corpus: str) -> int:
        return len(self._seeds(name, corpus))

    def paired(self, name: str, corpus: str, key: str, minus: str, form: str | None = None) -> Any:
        """The difference of each random seed, ``key`` less ``minus``: its mean and 95 % t interval."""
        by_seed, file = self._seeds(name, corpus), seeds_path(Path("studies"), name, corpus)
        for one in (key, minus):
            if any(one not in values for values in by_seed.values()):
                raise UserError(f"{file} lacks {one} of some random seed")
        (figure,) = over_seeds(
            [{"difference": values[key] - values[minus]} for values in by_seed.values()]
        ).values()
        return _with_interval(Interval(**figure), form, f"{file}: {key} - {minus}")

    def _seeds(self, name: str, corpus: str) -> Mapping[int, Mapping[str, float]]:
        by_seed = read_seeds(self.root / "studies", name, corpus)
        if not by_seed:
            raise UserError(f"{seeds_path(Path('studies'), name, corpus)} has no values by random seed")
        return by_seed

    def not_run(self, corpus: str) -> list[str]:
        return [
            name
            for name, study in studies(self.root / "studies").items()
            if corpus in study.about.texts and read_results(self.root / "studies", name, corpus) is None
        ]

    def claims(self, **where: str) -> int:
        return len(self.rows("studies/claims.csv", **where))

    def questions(self, **where: str) -> int:
        return len(self.rows("studies/questions.csv", **where))

    # Benchmarks and measurements --------------------------------------------------------------------------

    def benchmark(self, name: str, form: str | None = None) -> Any:
        record = self._record(name)
        return record if form is None else written(record.value, form, record.interval)

    def benchmark_table(self, name: str) -> str:
        return table(name, self._benchmarks())

    def benchmark_machine(self, name: str) -> str:
        """Processor, cores and torch, without threads and load."""
        return re.sub(r"^\S+ \S+, |, \d+ threads|, load .*$|\+cpu", "", self._record(name).machine)

    def has_benchmark(self, name: str) -> bool:
        return name in self._benchmarks()

    def benchmark_origins(self) -> list[dict[str, Any]]:
        """Each with commit, machine, dates and names of its records; first that of most of them."""
        names: dict[tuple[str, str], list[str]] = {}
        for name, record in self._benchmarks().items():
            origin = record.commit or "unknown", self.benchmark_machine(name)
            names.setdefault(origin, []).append(name)
        return [
            {
                "commit": commit,
                "machine": machine,
                "dates": sorted({self._record(name).date for name in of}),
                "names": of,
            }
            for (commit, machine), of in sorted(names.items(), key=lambda origin: -len(origin[1]))
        ]

    def growth_table(self) -> str:
        growth = Growth.read_if_there(self.root)
        return growth_table(growth) if growth else ""

    def growth(self) -> Growth:
        return Growth.read(self.root)

    def smollm2_command(self) -> str:
        return SMOLLM2_RUN

    def checkpoint_study(self, device: str) -> str:
        return page(read(results_path(self.root / "studies", device)))

    def checkpoint_answer(self, device: str) -> str:
        return answer(read(results_path(self.root / "studies", device)))

    def _record(self, name: str) -> Benchmark:
        if name not in self._benchmarks():
            raise UserError(f"{BENCHMARKS} has no record {name}")
        return self._benchmarks()[name]

    def measured(self, entry: str, value: str, form: str | None = None) -> Any:
        values = self.measurement(entry).values
        if value not in values:
            raise UserError(f"{MEASUREMENTS}: {entry} has no value {value}, but {', '.join(values)}")
        figure, place = values[value], f"{MEASUREMENTS}: {entry}: {value}"
        if isinstance(figure, Measured):
            return _with_interval(figure, form, place)
        if isinstance(figure, list) and form is not None:
            return listed([_as_asked(one, form, None, place) for one in figure])
        return _as_asked(figure, form, None, place)

    def measurement(self, entry: str) -> Measurement:
        if entry not in self.measurements():
            raise UserError(f"{MEASUREMENTS} has no entry {entry}")
        self.used.add(entry)
        return self.measurements()[entry]

    # Words ------------------------------------------------------------------------------------------------

    def headline(self, part: str = "all") -> str:
        headline, sentence = headline_table(self.root), headline_sentence(self.root)
        if headline is None or sentence is None:
            raise UserError("metrics/routing.json is missing; run `dvc repro` to make it")
        out = StringIO()
        console = Console(file=out, width=WIDTH, color_system=None, highlight=False)
        console.print(headline, "", sentence, sep="\n")
        lines = "\n".join(line.rstrip() for line in out.getvalue().rstrip().splitlines())
        table, _, words = lines.rpartition("\n\n")
        return {"all": lines, "table": table.partition("\n\n")[0], "sentence": words}[part]

    def stage_map(self) -> str:
        return mermaid(self.root)

    def parameters(self) -> list[ParameterSection]:
        return parameter_sections(self.root)

    def constant(self, value: Any, why: str) -> str:
        if not why.strip():
            raise UserError("a constant without a reason")
        return str(value)

    def given(self, condition: bool, words: str) -> str:
        if not condition:
            raise UserError("does not hold any more: say what does")
        return words

    # ------------------------------------------------------------------------------------------------------

    def _read_json(self, file: str) -> Any:
        """Of YAML too."""
        text = self._text(file)
        try:
            return json.loads(text) if file.endswith(".json") else YAML(typ="safe").load(text)
        except ValueError:
            raise UserError(f"{file} is not valid JSON") from None

    def _read_csv(self, file: str) -> list[dict[str, Any]]:
        lines = csv.DictReader(self._text(file).splitlines())
        return [{name: _value(cell) for name, cell in line.items()} for line in lines]

    def _text(self, file: str) -> str:
        try:
            return (self.root / file).read_text(encoding="utf-8")
        except FileNotFoundError:
            raise UserError(f"{file} is missing") from None


def _as_asked(value: Any, form: str | None, bounds: Sequence[float] | None, place: str) -> Any:
    if form is None:
        return value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UserError(f"{place} is {value!r}, not a number")
    return written(value, form, bounds)


def _with_interval(figure: Interval | Measured, form: str | None, place: str) -> Any:
    return figure if form is None else _as_asked(figure.value, form, [figure.low, figure.high], place)


def _at(file: str, values: Any, key: str) -> Any:
    """The value of a key; its parts may contain points themselves."""
    if not key:
        return values
    if isinstance(values, dict):
        parts = key.split(".")
        for size in range(len(parts), 0, -1):
            name = ".".join(parts[:size])
            if name in values:
                return _at(file, values[name], ".".join(parts[size:]))
    raise UserError(f"{file} has no key {key}")


def _value(cell: str | None) -> Any:
    """A cell as a number where it is one, None where it is empty."""
    for kind in (int, float):
        try:
            return kind(cell or "")
        except ValueError:
            continue
    return cell or None


def _words(where: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in where.items()) or "any kind"


def _place() -> str:
    """File and line of the template that is being rendered."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        template = frame.f_globals.get("__jinja_template__")
        if template is not None:
            return f"{template.filename}:{template.get_corresponding_lineno(frame.f_lineno)}"
        frame = frame.f_back
    return "no template"
