"""The table on the console: routing beside its controls, in the words of the page and the figures."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from offramp.report.figures import draw_figures
from offramp.report.findings import result_table
from offramp.report.headline import (
    headline_answer,
    headline_sentence,
    headline_table,
    headline_warning,
    print_headline,
)
from offramp.report.inputs import read_measurements
from offramp.results.pretraining import Pretraining
from offramp.results.routing import Routing, Timing
from offramp.results.suitability import Suitability
from offramp.vocabulary import CONTROLS
from tests.fixtures.report_run import fabricate


@pytest.fixture
def root(tmp_path):
    return fabricate(tmp_path, 3)


def lines(root) -> list[str]:
    console = Console(file=io.StringIO(), width=120)
    console.print(headline_table(root))
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_routing_stands_between_fixed_depths_and_controls(root):
    names = [line.split("  ")[0] for line in lines(root)[2:] if line]
    assert names == [
        "full depth",
        "all at exit 0",
        "all at exit 1",
        "the signal (learned)",
        "equal shares, 76,800 tokens:",
        "random exits (the floor)",
        "the signal (learned)",
        "loss oracle",
        "divergence oracle (attainable)",
        "gain oracle",
    ]
    (routed,) = [line for line in lines(root) if "[21.74, 23.52]" in line]
    for cell in ("22.61", "0.338", "47.0%", "35.0%", "27.0%", "21.6% [18%, 25%]"):
        assert cell in routed


def test_a_control_has_one_name_in_table_page_and_figures(root):
    measured = read_measurements(root, 10)
    console, page = "\n".join(lines(root)), [row.name for row in result_table(measured)[1].rows]
    (curve,) = [
        figure for figure in draw_figures(measured, "learned") if figure.name == "curve_shallow_ratio"
    ]
    for control in CONTROLS.values():
        assert control.label in console and control.label in page and f">{control.label}<" in curve.svg


def test_a_run_that_was_not_timed_has_no_seconds(root):
    (root / Timing.path).unlink()
    assert "21.6%" not in "\n".join(lines(root))


def test_the_sentence_says_what_the_table_says(root):
    assert headline_sentence(root) == (
        "47% of the tokens leave early: 27% fewer FLOPs than full depth for +4.7% [4.2%, 5.1%] perplexity. "
        "Attained 0.82 [0.80, 0.84] of what a signal can: 0 is random exits, 1 the divergence oracle. "
        "Headroom 0.36 [0.34, 0.38]: 1 would be the gain oracle, which knows the next token."
    )
    Routing.read(root).model_copy(update={"attained": None, "flop_saving": -0.1, "ppl": 21.0}).write(root)
    assert "10% more FLOPs" in headline_sentence(root) and "Attained undefined" in headline_sentence(root)


def test_routing_that_does_not_pay_is_warned_of_and_saves_nothing_in_words(root, capsys):
    assert headline_warning(root) is None
    Routing.read(root).model_copy(update={"ppl": 30.0, "flop_saving": 0.3}).write(root)
    assert headline_warning(root).startswith("WARNING: routing is worse than every token leaving at exit 1.")
    sentence = headline_sentence(root)
    assert sentence.startswith(headline_warning(root)) and "fewer FLOPs" not in sentence
    assert "47% of the tokens leave early: +38.9% [" in sentence
    print_headline(root)
    said = capsys.readouterr().out
    assert "WARNING: routing is worse than every token" in said
    assert " ".join(said.split()).endswith(headline_answer(root))


def test_the_last_line_answers_for_this_model_and_says_what_the_run_came_to(root):
    asked = f"Is early exit worth it for this model of {Pretraining.read(root).parameters:,} parameters?"
    verdict = Suitability.read(root).advice.sentence
    ran = "Executed in this run: 27.0% of the FLOPs saved at +4.7% perplexity."
    assert headline_answer(root) == f"{asked} {verdict} {ran}"
    Routing.read(root).model_copy(update={"ppl": 30.0}).write(root)
    assert headline_answer(root) == f"{asked} {verdict}"  # no saving where a fixed depth is as good


def test_before_evaluate_has_run_there_is_nothing_to_say(tmp_path):
    assert headline_table(tmp_path) is None and headline_sentence(tmp_path) is None
