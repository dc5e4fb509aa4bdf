"""Every function of the templates looks up what it says, and says what is missing."""

from __future__ import annotations

import json

import pytest

from docs.figures import Figures
from docs.writing import UNKNOWN, form, in_words, written
from offramp.errors import UserError
from offramp.results.benchmarks import PATH, Benchmark, write_benchmarks

MEASURED = """
threshold-0.7:
  what: Another threshold
  values: {leave: 0.77, differ: {value: 0.039, low: 0.037, high: 0.041}, seconds: [0.09, -0.03]}
  n: 1
  date: 2026-11-23
  machine: two cores
  command: dvc exp run -S threshold=0.7
"""
CURVE = """signal,fraction,ppl,attained,attained_low,attained_high,note
learned,0.5,25.5,0.836,0.81,0.86,a
learned,0.9,27.7,0.79,,,b
random,0.5,26.94,0,,,c
"""


@pytest.fixture
def root(tmp_path):
    (tmp_path / "metrics/plots").mkdir(parents=True)
    (tmp_path / "studies/metrics").mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    routing = {
        "ppl": 25.168,
        "interval": {"ppl": [23.09, 27.27]},
        "tokens": 237952,
        "name": "a",
        "a.b": {"c": 2},
    }
    (tmp_path / "metrics/routing.json").write_text(json.dumps(routing))
    (tmp_path / "metrics/plots/curve.csv").write_text(CURVE)
    (tmp_path / "params.yaml").write_text("exits: {risk: {tolerance: 0.05}}\nshares: [0.1, 0.5]\n")
    (tmp_path / "docs/measurements.yaml").write_text(MEASURED)
    values = {"joint:a.0.5": {"value": 0.318, "low": 0.30, "high": 0.337}}
    outcome = {"figures": {}, "sentences": [], "n": 2, "interval": "t", "values": values}
    study = {"study": "signals", "corpus": "sotu", "text": {}, "corrected": outcome}
    (tmp_path / "studies/metrics/signals.sotu.json").write_text(json.dumps(study))
    (tmp_path / "studies/metrics/signals.sotu.csv").write_text("key,0,1\na,0.5,0.7\nb,0.4,0.4\nc,1,\n")
    (tmp_path / "studies/claims.csv").write_text("id,report,verdict\n1,x,holds\n2,x,fails\n3,y,holds\n")
    speed = Benchmark(
        name="speed",
        value=1.278,
        unit="x",
        bar=None,
        held_against="another",
        n=5,
        interval=[1.246, 1.288],
        verdict=None,
        commit="abc1234",
        date="2026-11-23",
        machine="Linux x86_64, AMD EPYC (AVX512), 2 cores, 1 threads, torch 2.13.0+cpu, load 2.0",
    )
    write_benchmarks(tmp_path / PATH, [speed])
    return tmp_path


def test_a_study_of_a_checkpoint_that_was_not_run_says_so(figures):
    assert figures.functions()["checkpoint_study"]("cpu") == "*Not run yet.*"


@pytest.fixture
def figures(root):
    return Figures(root)


@pytest.mark.parametrize(
    ("value", "how", "bounds", "text"),
    [
        (0.836, ".2f", None, "0.84"),
        (0.836, ".2f", [0.81, 0.86], "0.84 [0.81, 0.86]"),
        (0.0145, ".1%", [0.0132, 0.016], "1.5 % [1.3, 1.6]"),
        (0.0145, "+.1%", [-0.002, 0.016], "+1.5 % [-0.2, 1.6]"),
        (-0.001, ".2f", [-0.024, 0.004], "0.00 [-0.02, 0.00]"),
        (-0.001, "+.2f", None, "0.00"),
        (237952, ",", None, "237,952"),
        (1312000, ".1M", None, "1.3 M"),
    ],
)
def test_a_number_is_written_as_its_form_says(value, how, bounds, text):
    assert written(value, how, bounds) == text


def test_a_value_of_a_json_file(figures):
    assert figures.json("metrics/routing.json", "ppl") == 25.168
    assert figures.json("metrics/routing.json", "ppl", ".2f", "interval.ppl") == "25.17 [23.09, 27.27]"
    assert figures.json("metrics/routing.json", "a.b.c") == 2


def test_the_one_row_with_these_values(figures):
    curve = "metrics/plots/curve.csv"
    assert figures.row(curve, "ppl", ".1f", signal="learned", fraction=0.5) == "25.5"
    assert figures.row(curve, "attained", ".2f", signal="learned", fraction=0.5) == "0.84 [0.81, 0.86]"
    assert figures.row(curve, "attained", ".2f", signal="learned", fraction=0.9) == "0.79"
    assert [row["note"] for row in figures.rows(curve, fraction=0.5)] == ["a", "c"]


def test_values_of_studies(figures):
    assert figures.study("signals", "sotu", "joint:a.0.5", ".2f") == "0.32 [0.30, 0.34]"
    assert figures.study("signals", "sotu", "joint:a.0.5").low == 0.30
    assert figures.seeds("signals", "sotu") == 2


def test_a_difference_is_paired_by_random_seed(figures):
    difference = figures.paired("signals", "sotu", "a", "b")
    assert difference.value == pytest.approx(0.2)
    half = 12.7062 * 0.1  # the t quantile of one degree of freedom times the standard error
    assert (difference.low, difference.high) == pytest.approx((0.2 - half, 0.2 + half), abs=1e-4)
    assert figures.paired("signals", "sotu", "a", "b", "+.1f") == "+0.2 [-1.1, 1.5]"


def test_studies_without_results_of_a_text_are_named(root, figures):
    about = "{report: null, section: s, asks: a, texts: [%s], seeds: [0], settings: {}, flaws: []}"
    for name, texts in {"signals": "sotu, wikitext", "labels": "sotu", "growth": "sotu"}.items():
        (root / "studies" / name).mkdir()
        (root / "studies" / name / "study.yaml").write_text(about % texts)
    assert figures.not_run("sotu") == ["growth", "labels"]
    assert figures.not_run("wikitext") == ["signals"]
    assert figures.not_run("pangram") == []


def test_rows_of_the_ledger_are_counted(figures):
    assert figures.claims() == 3
    assert figures.claims(verdict="holds") == 2
    assert figures.claims(verdict="holds", report="y") == 1


def test_benchmarks(figures):
    assert figures.benchmark("speed", ".2f") == "1.28 [1.25, 1.29]"
    assert figures.benchmark("speed").n == 5
    assert figures.has_benchmark("speed") and not figures.has_benchmark("size")


def test_records_are_told_by_commit_and_machine_most_of_them_first(root, figures):
    speed = figures.benchmark("speed")
    rows = [
        speed.model_copy(update={"name": name, **more})
        for name, more in (("a", {}), ("b", {"date": "2026-11-22"}), ("c", {"commit": "def5678"}))
    ]
    write_benchmarks(root / PATH, rows)
    machine = "AMD EPYC (AVX512), 2 cores, torch 2.13.0"
    assert Figures(root).benchmark_origins() == [
        {"commit": "abc1234", "machine": machine, "dates": ["2026-11-22", "2026-11-23"], "names": ["a", "b"]},
        {"commit": "def5678", "machine": machine, "dates": ["2026-11-23"], "names": ["c"]},
    ]


def test_what_stages_need_as_the_corpus_grows(root, figures):
    assert figures.growth_table() == ""
    costs = [
        {"stage": "collect", "corpus_tokens": size, "tokens": size // 2, "seconds": 4.0, "cpu_seconds": 6.0}
        | {"memory_gb": 0.514}
        for size in (100_000, 1_000_000)
    ]
    growth = {"machine": "two cores", "commit": "abc1234", "date": "2026-11-30", "costs": costs}
    (root / "metrics/growth.json").write_text(json.dumps(growth))
    assert figures.growth_table().splitlines()[2:] == [
        "| `collect` | 100,000 | 50,000 | 120.0 | 80.0 | 0.51 GB |",
        "| `collect` | 1,000,000 | 500,000 | 12.0 | 8.0 | 0.51 GB |",
    ]
    assert figures.growth().commit == "abc1234"
    assert figures.growth().added_bytes("collect") == 0
    costs[1]["memory_gb"] += 0.045  # for 450,000 tokens more
    (root / "metrics/growth.json").write_text(json.dumps(growth))
    assert figures.growth().added_bytes("collect") == pytest.approx(100)
    with pytest.raises(ValueError, match="0 corpora for stage evaluate"):
        figures.growth().added_bytes("evaluate")


def test_measurements(figures):
    assert figures.measured("threshold-0.7", "leave", ".0%") == "77 %"
    assert figures.measured("threshold-0.7", "differ", ".1%") == "3.9 % [3.7, 4.1]"
    assert figures.measured("threshold-0.7", "seconds", ".0%") == "9 and -3 %"
    assert figures.measurement("threshold-0.7").machine == "two cores"
    assert figures.used == {"threshold-0.7"}


@pytest.mark.parametrize("field", ["what", "values", "n", "date", "machine", "command"])
def test_a_measurement_that_says_too_little_is_refused(root, field):
    lines = [line for line in MEASURED.splitlines() if not line.startswith(f"  {field}:")]
    (root / "docs/measurements.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match=rf"docs/measurements.yaml: threshold-0.7.{field}: Field required"):
        Figures(root).measurements()


MISSING = [
    ("json", ("metrics/none.json", "a"), {}, "metrics/none.json is missing"),
    ("json", ("metrics/routing.json", "interval.nll"), {}, "metrics/routing.json has no key nll"),
    ("json", ("metrics/routing.json", "name", ".2f"), {}, "metrics/routing.json: name is 'a', not a number"),
    ("row", ("metrics/plots/curve.csv", "kl"), {"fraction": 0.9}, "metrics/plots/curve.csv has no column kl"),
    ("row", ("metrics/plots/curve.csv", "ppl"), {"fraction": 0.5}, "has 2 rows of fraction 0.5, not one"),
    ("row", ("metrics/plots/curve.csv", "ppl"), {"fraction": 0.6}, "has 0 rows of fraction 0.6, not one"),
    (
        "row",
        ("metrics/plots/curve.csv", "ppl"),
        {"share": 0.5},
        "metrics/plots/curve.csv has no column share",
    ),
    ("param", ("exits.risk.alpha",), {}, "params.yaml has no key alpha"),
    (
        "study",
        ("signals", "wikitext", "a"),
        {},
        "studies/metrics/signals.wikitext.json has no corrected results",
    ),
    ("study", ("signals", "sotu", "a"), {}, "studies/metrics/signals.sotu.json has no corrected value a"),
    (
        "paired",
        ("signals", "sotu", "a", "c"),
        {},
        "studies/metrics/signals.sotu.csv lacks c of some random seed",
    ),
    (
        "seeds",
        ("signals", "wikitext"),
        {},
        "studies/metrics/signals.wikitext.csv has no values by random seed",
    ),
    ("claims", (), {"kind": "x"}, "studies/claims.csv has no column kind"),
    ("benchmark", ("size",), {}, "metrics/benchmarks.json has no record size"),
    ("measured", ("threshold-0.8", "leave"), {}, "docs/measurements.yaml has no entry threshold-0.8"),
    ("measured", ("threshold-0.7", "ppl"), {}, "threshold-0.7 has no value ppl, but leave, differ, seconds"),
    ("headline", (), {}, "metrics/routing.json"),
    ("given", (False, "it is so"), {}, "does not hold any more"),
]


@pytest.mark.parametrize(("name", "arguments", "named", "message"), MISSING)
def test_what_cannot_be_looked_up_is_a_problem_that_names_call_and_file(
    figures, name, arguments, named, message
):
    assert figures.functions()[name](*arguments, **named) is UNKNOWN
    (problem,) = figures.problems
    assert f"{name}(" in problem and message in problem


def test_what_is_unknown_raises_no_second_problem(figures):
    functions = figures.functions()
    assert form((UNKNOWN - 1) * 2 / UNKNOWN, ".2f") is UNKNOWN
    assert functions["given"](UNKNOWN.low > 0.5, "words") == "words"
    assert str(functions["study"]("signals", "sotu", UNKNOWN)) == "?"
    assert not figures.problems


def test_words_stand_where_files_bear_them_out(figures):
    assert figures.given(figures.claims() == 3, "all three") == "all three"
    with pytest.raises(UserError, match="say what does"):
        figures.given(figures.claims() == 4, "all four")


def test_counts_in_words():
    assert [in_words(value) for value in (0, 3, 237, 0.5)] == ["no", "three", 237, 0.5]
