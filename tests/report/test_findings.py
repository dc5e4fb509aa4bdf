"""What the page says is what the numbers say, also where that is unwelcome."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.report.answer import verdict
from offramp.report.findings import result_table, sentences, standing
from offramp.report.inputs import Measurements, read_measurements
from offramp.report.words import percent
from offramp.results.routing import Promise, RiseCheck
from tests.fixtures.report_run import fabricate


@pytest.fixture(scope="module")
def measured(tmp_path_factory) -> Measurements:
    return read_measurements(fabricate(tmp_path_factory.mktemp("run"), 3), text_tokens=50)


def changed(measured: Measurements, timing=None, interval=None, **routing) -> Measurements:
    routing["interval"] = measured.routing.interval.model_copy(update=interval)
    return replace(
        measured,
        routing=measured.routing.model_copy(update=routing),
        timing=measured.timing.model_copy(update=timing),
    )


def said(measured: Measurements) -> list[str]:
    return [f"{sentence.lead} {sentence.rest}" for sentence in sentences(measured)]


@pytest.mark.parametrize(
    ("bounds", "lead", "numbers"),
    [
        ([0.0612, 0.0688], "The signal beats random exits:", "0.0612 to 0.0688, above 0"),
        ([-0.02, -0.01], "The signal is worse than random exits:", "\u22120.0200 to \u22120.0100, below 0"),
        ([-0.01, 0.02], "The signal is not shown to beat", "\u22120.0100 to 0.0200, which includes 0"),
        ([0.0, 0.02], "The signal is not shown to beat", "0.0000 to 0.0200, which includes 0"),
        (None, "Not compared with random exits.", "no interval"),
    ],
)
def test_chance(measured, bounds, lead, numbers):
    chance = said(changed(measured, interval={"random_minus_signal_nll": bounds}))[1]
    assert chance.startswith(lead)
    assert numbers in chance


@given(low=st.floats(-1, 1), width=st.floats(0, 1))
def test_beats_chance_exactly_when_the_interval_is_above_zero(measured, low, width):
    chance = said(changed(measured, interval={"random_minus_signal_nll": [low, low + width]}))[1]
    assert ("The signal beats random exits:" in chance) == (low > 0)
    assert ("is worse than random exits:" in chance) == (low + width < 0)


@pytest.mark.parametrize(
    ("value", "bounds", "expected"),
    [
        (0.823, [0.801, 0.845], "It attains 82.3% of what a signal can (95% interval 80.1% to 84.5%)"),
        (0.03, [-0.01, 0.07], "the interval includes 0"),
        (-0.12, [-0.2, -0.05], "It attains nothing of what a signal can: \u221212.0%"),
        (None, None, "What could be attained is undefined: the oracle does no better than random exits"),
    ],
)
def test_attained(measured, value, bounds, expected):
    assert expected in said(changed(measured, attained=value, interval={"attained": bounds}))[2]


def test_the_oracle_that_knows_the_next_token_is_shown_as_what_it_is(measured):
    oracles = said(measured)[2]
    assert "the gain oracle, which knows the next token and no signal reaches: 35.9%" in oracles
    assert "gain oracle" not in said(changed(measured, headroom=None))[2]


def test_the_first_lines_give_floor_signal_and_attainable_ceiling(measured):
    assert standing(measured.routing) == (
        "Perplexity with as many early exits, on 76,800 control tokens: 24.28 at random (the floor), 22.75 "
        "by this signal, 22.43 by the divergence oracle (the attainable ceiling): 82.3% of the way"
    )


@pytest.mark.parametrize(("share", "who"), [(0.0, "No token"), (1.0, "Every token")])
def test_without_a_choice_nothing_is_claimed(measured, share, who):
    fractions = {"exit_0": share, "exit_1": 0.0, "exit_2": 1 - share}
    _, chance, oracle, _ = said(
        changed(measured, shallow_ratio=share, exit_fraction=fractions, attained=None)
    )
    assert chance.startswith(f"There is no choice to judge. {who} leaves early at this threshold")
    assert "undefined: one exit takes every token" in oracle


@pytest.mark.parametrize(
    ("layers", "flops", "wall", "expected", "absent"),
    [
        (0.30, 0.28, (0.27, 0.26, 0.28), ["agree within 5 points"], ["behind", "ahead", "holds 0"]),
        (
            0.50,
            0.02,
            (0.01, -0.01, 0.02),
            ["do not agree", "FLOPs are 48.0 points behind layers", "The interval holds 0"],
            [],
        ),
        (
            0.35,
            0.27,
            (-0.08, -0.1, -0.06),
            ["slower than full depth", "clock is 35.0 points behind"],
            ["agree"],
        ),
        (
            0.10,
            0.20,
            (0.30, 0.28, 0.32),
            ["do not agree", "clock is 10.0 points ahead", "FLOPs are 10.0 points ahead"],
            [],
        ),
    ],
)
def test_savings(measured, layers, flops, wall, expected, absent):
    timing = {"wall_saving": wall[0], "wall_saving_interval": list(wall[1:])}
    savings = said(changed(measured, timing, layer_saving=layers, flop_saving=flops))[3]
    assert all(words in savings for words in expected)
    assert not any(words in savings for words in absent)


def test_a_cost_of_asking_is_claimed_only_where_the_pairs_show_one(measured):
    seen = changed(measured, {"skipping_saving": 0.3})
    assert "saves 30.0% of the time; the difference is what asking takes." in said(seen)[3]
    for saving, said_so in ((0.23, "23.0%"), (0.1, "10.0%")):
        unseen = changed(measured, {"skipping_saving": saving})
        assert f"saves {said_so} of the time; what asking takes is too little to be seen" in said(unseen)[3]


def test_quality_does_not_flatter(measured):
    assert said(measured)[0].startswith(
        "Early exits cost perplexity. It goes from 21.60 at full depth to 22.61"
    )
    assert "+4.7% (95% interval +4.2% to +5.1%)" in said(measured)[0]
    assert said(changed(measured, ppl=21.5))[0].startswith("Early exits cost no perplexity.")


def test_table_keeps_rows_with_their_tokens(measured):
    everything, same = result_table(measured)
    assert "288,384 test tokens" in everything.name
    assert [row.name for row in everything.rows] == ["routed", "full depth", "exit 0", "exit 1"]
    assert "76,800 control tokens" in same.name
    names = ["random exits", "this signal", "loss oracle", "divergence oracle", "gain oracle"]
    assert [row.name for row in same.rows] == names
    routed, random = everything.rows[0].cells, same.rows[0].cells
    assert (routed[0].value, routed[0].interval) == ("22.61", "21.74 to 23.52")
    assert (routed[6].value, routed[6].interval) == ("21.6%", "18.0% to 25.0%")
    assert (random[0].value, random[6].value) == ("24.28", "\u2013")


def test_no_negative_zero():
    assert percent(-0.0001) == "0.0%"
    assert percent(-0.031) == "\u22123.1%"


PROMISE = Promise(
    measure="error",
    tolerance=0.02,
    delta=0.05,
    sequences=760,
    tested=31,
    passed=30,
    held_out_risk=0.015,
    p_value=0.03,
    test_risk=0.0171,
    test_interval=[0.0162, 0.0180],
    leavers_risk=0.0140,
    leavers_interval=[0.0131, 0.0149],
    propagation_risk=0.0031,
    propagation_interval=[0.0029, 0.0033],
    kept=True,
)


@pytest.mark.parametrize(
    ("change", "lead"),
    [
        ({}, "The promised risk was kept on fresh text."),
        ({"kept": False, "test_risk": 0.03}, "The promised risk was NOT kept on fresh text."),
        ({"passed": 0}, "No threshold could be promised, so nothing leaves."),
    ],
)
def test_a_promise_is_held_against_fresh_text(measured, change, lead):
    (sentence,) = [
        text
        for text in said(changed(measured, risk=PROMISE.model_copy(update=change)))
        if "promise" in text.lower()
    ]
    assert sentence.startswith(lead) and "error at most 0.02 with probability 0.95" in sentence
    assert (
        "760 held-out sequences taken as independent" in sentence
        and "95% interval 0.0162 to 0.0180" in sentence
    )


def test_a_promise_is_about_tokens_that_leave_and_says_what_propagation_adds(measured):
    (sentence,) = [text for text in said(changed(measured, risk=PROMISE)) if "promise" in text.lower()]
    assert "with probability 0.95, by tokens that leave, from" in sentence
    assert "(propagation) comes on top and is not promised" in sentence
    assert (
        "0.0171 (95% interval 0.0162 to 0.0180), of which 0.0140 (95% interval 0.0131 to 0.0149) by tokens "
        "that leave and 0.0031 (95% interval 0.0029 to 0.0033) by propagation."
    ) in sentence


def test_ranking_stands_beside_calibration(measured):
    (sentence,) = [
        text
        for text in said(changed(measured, auroc=0.61, aurc=0.2, ece=0.005, interval={"ece": [0.004, 0.008]}))
        if "AUROC" in text
    ]
    assert (
        "calibration error 0.5% (95% interval 0.4% to 0.8%)" in sentence
        and "0.61 (0.5 is chance)" in sentence
    )


CHECK = RiseCheck(
    allowed=0.01,
    rise=0.008,
    interval=[0.0072, 0.0093],
    tokens=38065,
    groups=12,
    grouped_by="documents",
    candidates=100,
    executed=4,
    place=16,
    test_rise=-0.0001,
    test_interval=[-0.0003, 0.0002],
    verdict="kept",
)


def test_an_allowed_rise_is_told_with_its_numbers_on_test_text(measured):
    (sentence,) = [text for text in said(changed(measured, quality=CHECK)) if "Allowed: " in text]
    assert "On test text: \u22120.01% (95% interval \u22120.03% to +0.02%)." in sentence


@pytest.mark.parametrize(
    ("change", "lead", "short"),
    [
        ({}, "The allowed rise in perplexity was kept", "allowed +1.00%, kept on test text"),
        (
            {"verdict": "not kept"},
            "The allowed rise in perplexity was NOT kept",
            "%, not kept on test",
        ),
        (
            {"verdict": "not established", "test_interval": [-0.0003, 0.0112]},
            "Whether the allowed rise in perplexity was kept on fresh text is not established",
            "allowed +1.00%: kept on test text, but the interval reaches +1.12%",
        ),
        (
            {"verdict": "not established", "test_rise": 0.0104, "test_interval": [0.0097, 0.0112]},
            "Whether the allowed rise in perplexity was kept on fresh text is not established",
            "allowed +1.00%: not kept on test text, but the interval reaches down to +0.97%",
        ),
        (
            {"verdict": "not established", "test_interval": None},
            "Whether the allowed rise in perplexity was kept on fresh text is not established",
            "allowed +1.00%, not established on test text",
        ),
        (
            {"place": 0, "rise": 0.0, "interval": None},
            "No candidate stayed within the allowed rise in perplexity, so nothing leaves",
            "allowed +1.00%, which no candidate kept on held-out text",
        ),
    ],
)
def test_a_rise_that_was_allowed_is_held_against_fresh_text(measured, change, lead, short):
    routed = changed(measured, quality=CHECK.model_copy(update=change))
    (sentence,) = [text for text in said(routed) if "Allowed: " in text]
    assert sentence.startswith(lead)
    assert "Found on 38,065 held-out tokens of 12 documents" in sentence and "not a guarantee" in sentence
    assert short in verdict(routed) and "allowed" not in verdict(measured)
