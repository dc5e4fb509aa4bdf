"""What the page answers first: the verdict, three figures, thresholds, and which signal is for which aim."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.report import answer
from offramp.report.inputs import Measurements, read_measurements
from offramp.results.shortfalls import shortfalls
from tests.fixtures.report_run import fabricate
from tests.report.test_findings import CHECK, changed


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Measurements:
    return read_measurements(fabricate(tmp_path_factory.mktemp("run"), 2), text_tokens=50)


def with_allowances(measured: Measurements, *signals: str, **values) -> Measurements:
    rows = [row.model_copy(update=values) for row in measured.allowances if row.signal in signals]
    return replace(measured, allowances=rows)


def test_the_verdict_is_a_sentence_with_the_paired_interval(measured):
    assert answer.verdict(measured) == (
        "Early exit at threshold 0.75 saves 27.0% of the FLOPs for +4.7% perplexity [+4.2%, +5.1%], in 21.6% "
        "less time"
    )


@pytest.mark.parametrize(
    ("wall", "bounds", "words"),
    [
        (0.01, [-0.02, 0.04], "with no measurable change in time"),
        (0.01, [0.0, 0.04], "with no measurable change in time"),
        (-0.03, [-0.05, -0.01], "in 3.0% more time"),
        (0.03, [0.01, 0.05], "in 3.0% less time"),
    ],
)
def test_where_the_pairs_straddle_0_no_time_is_claimed_in_the_title_either(measured, wall, bounds, words):
    run = changed(measured, {"wall_saving": wall, "wall_saving_interval": bounds})
    assert answer.verdict(run).endswith(words)
    time = answer.key_figures(run)[2]
    assert (time.value == "no measurable change") == ("no measurable" in words)
    assert "12 interleaved pairs" in time.note


def test_three_figures_have_intervals(measured):
    assert [
        (figure.name, figure.value, figure.note.split("]")[0]) for figure in answer.key_figures(measured)
    ] == [
        ("perplexity", "+4.7%", "[+4.2%, +5.1%"),
        ("FLOPs saved", "27.0%", "[26.2%, 27.9%"),
        ("time saved", "21.6%", "[18.0%, 25.0%"),
    ]
    alike = changed(measured, interval={"ppl_increase": None})
    assert answer.key_figures(alike)[0].note == "no interval"


@given(ppl=st.floats(5, 100), saving=st.floats(-0.3, 0.9), low=st.floats(-0.5, 0.5))
def test_no_title_advertises_what_does_not_pay(measured, ppl, saving, low):
    run = changed(
        measured, ppl=ppl, flop_saving=saving, headroom=low, interval={"headroom": [low, low + 0.1]}
    )
    title = answer.verdict(run)
    assert ("does not pay" in title) == bool(shortfalls(run.routing))
    if shortfalls(run.routing):
        assert "FLOPs" not in title and "%" not in title


def test_allowances_are_those_of_the_signal_by_how_much_is_allowed(measured):
    rows = answer.allowances(measured, "ppl", "learned")
    assert [row.allowed for row in rows] == [0.005, 0.01, 0.02, 0.05]
    assert {(row.signal, row.aim) for row in rows} == {("learned", "ppl")}


def test_which_signal_is_for_which_aim(measured):
    assert answer.which_signal(measured) == (
        "Which signal for which aim, by calibration text: to keep perplexity: learned (10.0% of FLOPs at "
        "1% more of it, margin 3.0%); to predict what full depth predicts: margin (14.0% of FLOPs at 95% "
        "agreement, learned 8.0%)."
    )
    assert answer.best_free(measured, "ppl") == answer.best_free(measured, "agreement") == "margin"


def test_where_no_signal_saves_it_is_said_and_the_least_bad_free_one_is_drawn(measured):
    nothing = with_allowances(measured, "entropy")
    assert answer.which_signal(nothing).startswith("No signal saves FLOPs at 1% more perplexity")
    assert answer.best_free(nothing, "ppl") == "entropy"
    assert answer.next_commands(nothing, "learned").popitem()[1] == "offramp suitability"
    assert answer.best_free(with_allowances(measured, "learned"), "ppl") is None


def test_the_next_command_is_the_best_signal_at_its_threshold_of_calibration_text(measured):
    assert answer.next_commands(measured, "learned") == {
        "at most 1% more perplexity": "dvc exp run -S threshold=0.87",
        "95% agreement with full depth": "dvc exp run -S exits.confidence=margin -S threshold=0.75",
    }
    of_margin = answer.next_commands(measured, "margin")
    assert of_margin["at most 1% more perplexity"] == (
        "dvc exp run -S exits.confidence=learned -S threshold=0.87"
    )
    in_force = changed(measured, threshold={"exit_0": 0.87})
    assert answer.next_commands(in_force, "learned")["at most 5% more perplexity"] == (
        "dvc exp run -S threshold=0.75"
    )


def test_what_the_run_found_by_executing_is_not_proposed_again(measured):
    done = changed(measured, quality=CHECK, threshold={"exit_0": 0.9})
    assert answer.next_commands(done, "learned")["at most 5% more perplexity"] == (
        "dvc exp run -S threshold=0.75"
    )


def test_every_set_of_tokens_has_its_own_perplexity_of_full_depth(measured):
    sets = {each.name: (each.tokens, round(each.full_ppl, 2)) for each in answer.token_sets(measured)}
    assert sets == {
        "test split": (288_384, 21.6),
        "control tokens": (76_800, 21.6),
        "suitability": (16_384, 22.2),
        "calibration": (150_000, 20.9),
    }


def test_two_savings_of_one_exit_are_explained_where_they_differ(measured):
    assert answer.two_savings(measured).startswith(
        "Leaving at exit 0 saves 61.0% of the FLOPs where every token does, and 50.0% for a token that leaves"
    )
    controls = measured.routing.controls.model_copy(
        update={"exit_0": measured.routing.controls.fixed[0].model_copy(update={"flop_saving": 0.5})}
    )
    assert answer.two_savings(changed(measured, controls=controls)) == ""
