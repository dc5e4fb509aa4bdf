"""Where routing does not pay: constructed cases, and the rule against its own words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.results.routing import FixedDepth, Routing
from offramp.results.shortfalls import shortfalls
from tests.fixtures.report_run import made_up_routing

PPL, SAVING = st.floats(5, 100), st.floats(-0.3, 0.9)


def routed(exits: int = 3, interval=None, controls=None, **values) -> Routing:
    """A routing of the fixture, with changes: of controls, a pair of perplexity and FLOPs saved."""
    base = made_up_routing(exits)
    depths = {
        name: FixedDepth(
            ppl=ppl, accuracy=0.3, agreement=0.7, shallow_ratio=1.0, layer_saving=saving, flop_saving=saving
        )
        for name, (ppl, saving) in (controls or {}).items()
    }
    return base.model_copy(
        update={
            **values,
            "interval": base.interval.model_copy(update=interval or {}),
            "controls": base.controls.model_copy(update=depths),
        }
    )


def shorts(routing: Routing) -> list[str]:
    return [reason.short for reason in shortfalls(routing)]


def test_a_routing_that_pays_has_none():
    assert shorts(routed()) == []


def test_a_short_joint_training_at_threshold_08_is_told():
    """Nearly all leave, at a perplexity and at FLOPs that the first exit beats alone."""
    routing = routed(2, ppl=196.3, flop_saving=0.585, controls={"exit_0": (196.1, 0.675)})
    (reason,) = shortfalls(routing)
    assert reason.short == "worse than every token leaving at exit 0"
    assert reason.sentence == (
        "Every token leaving at exit 0 has perplexity 196.10 and saves 67.5% of the FLOPs; routing has "
        "196.30 and saves 58.5%."
    )


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # everybody leaves at exit 0, and was asked there: equal perplexity, but for rounding
        (
            {"ppl": 28.5 * (1 - 1e-8), "flop_saving": 0.6, "exit_fraction": {"exit_0": 1.0, "exit_1": 0.0}},
            "no better than every token leaving at exit 0",
        ),
        # nobody leaves, and asking costs
        (
            {"ppl": 21.6, "flop_saving": -0.02, "exit_fraction": {"exit_0": 0.0, "exit_1": 1.0}},
            "no better than full depth",
        ),
        ({"ppl": 22.0, "flop_saving": 0.0}, "worse than full depth"),
    ],
)
def test_routing_that_something_simpler_replaces(values, expected):
    assert shorts(routed(2, **values)) == [expected]


def test_of_several_depths_the_one_that_predicts_best_is_named():
    routing = routed(ppl=30.0, flop_saving=0.1)
    assert shorts(routing) == ["worse than every token leaving at exit 1"]


@pytest.mark.parametrize(
    ("values", "bounds", "expected"),
    [
        ({"headroom": 0.01}, {"headroom": [-0.02, 0.03]}, ["not shown to beat random exits of equal shares"]),
        ({"headroom": 0.01}, {"headroom": [0.0, 0.03]}, ["not shown to beat random exits of equal shares"]),
        ({"headroom": -0.2}, {"headroom": [-0.3, -0.1]}, ["worse than random exits of equal shares"]),
        ({"headroom": 0.01}, {"headroom": [1e-6, 0.03]}, []),
        # one document: nothing varies, the value decides
        ({"headroom": -0.2}, {"headroom": None}, ["worse than random exits of equal shares"]),
        ({"headroom": 0.2}, {"headroom": None}, []),
        # the oracle is not ahead of chance: headroom is undefined, the difference in nats decides
        (
            {"headroom": None},
            {"headroom": None, "random_minus_signal_nll": [-0.02, -0.01]},
            ["worse than random exits of equal shares"],
        ),
        ({"headroom": None}, {"headroom": None, "random_minus_signal_nll": [0.01, 0.02]}, []),
        ({"headroom": None}, {"headroom": None, "random_minus_signal_nll": None}, []),
    ],
)
def test_chance(values, bounds, expected):
    assert shorts(routed(interval=bounds, **values)) == expected


def test_both_may_be_so():
    routing = routed(2, interval={"headroom": [-0.3, -0.1]}, ppl=40.0, flop_saving=0.4)
    assert len(shorts(routing)) == 2


def test_without_an_early_exit_there_is_nothing_to_warn_of():
    routing = routed(1, exit_fraction={"exit_0": 1.0}, headroom=None, ppl=22.0, flop_saving=0.0)
    assert shortfalls(routing) == []


@given(st.lists(st.tuples(PPL, SAVING), min_size=2, max_size=2), PPL, SAVING)
def test_a_fixed_depth_is_named_exactly_where_one_is_no_worse_in_both(depths, ppl, saving):
    reasons = shortfalls(
        routed(controls={"exit_0": depths[0], "exit_1": depths[1]}, ppl=ppl, flop_saving=saving)
    )
    full = (21.6, 0.0)
    beaten = any(
        other_ppl <= ppl * (1 + 1e-6) and other_saving >= saving
        for other_ppl, other_saving in (*depths, full)
    )
    assert bool(reasons) == beaten
    if beaten:
        assert f"{saving:.1%}" in reasons[0].sentence and f"{ppl:.2f}" in reasons[0].sentence


@given(PPL, SAVING, st.floats(0, 50), st.floats(0, 0.5))
def test_more_perplexity_and_more_flops_never_end_a_warning(ppl, saving, more, fewer):
    if shortfalls(routed(ppl=ppl, flop_saving=saving)):
        assert shortfalls(routed(ppl=ppl + more, flop_saving=saving - fewer))


@given(st.floats(-1, 1), st.floats(0, 1))
def test_chance_is_beaten_exactly_where_the_interval_is_above_zero(low, width):
    reasons = shorts(routed(headroom=low + width / 2, interval={"headroom": [low, low + width]}))
    assert bool(reasons) == (low <= 0)
    assert any("worse" in reason for reason in reasons) == (low + width < 0)
