"""Plots of the studies: what a table asks for is what is drawn."""

from __future__ import annotations

import pytest

from offramp.errors import UserError
from studies.common.curves import curve_rows, curves_figure, panels_figure
from studies.findings.plots import draw_plot, plot_of

GROWTH = {
    "standard": [{1: 10.0, 2: 20.0, 3: 400.0}, {1: 12.0, 2: 30.0, 3: 500.0}],
    "no growth": [{1: 10.0, 2: 11.0}, {1: 12.0, 2: 11.0}],
}


def drawn(figure: dict) -> str:
    return draw_plot(plot_of({"curves": figure}))


def test_a_band_is_of_all_seeds_or_there_is_none():
    rows = curve_rows([{1: 2.0, 2: 3.0, 5: 1.0}, {2: 5.0, 1: 2.0}], "arm")
    assert [row[:2] for row in rows] == [["arm", 1], ["arm", 2]]
    assert rows[1][2][0] == 4.0 and rows[1][2][1] < 3.0 < 5.0 < rows[1][2][2]
    assert curve_rows([{1: 2.0}]) == [[1, 2.0]]


def test_curves_have_bands_a_log_axis_and_whole_ticks():
    plain = drawn(curves_figure("Growth", GROWTH, "layers", "perplexity", log=True))
    assert plain.count("FillBetweenPolyCollection") == 2 or plain.count("PolyCollection") == 2
    assert ">400<" in plain or ">300<" in plain or ">200<" in plain
    assert ">1.5<" not in plain and ">2<" in plain
    assert plain == drawn(curves_figure("Growth", GROWTH, "layers", "perplexity", log=True))


def test_panels_share_one_legend():
    found = drawn(
        panels_figure("Sizes", {"20k": GROWTH, "500k": GROWTH}, "characters", "layers", "perplexity")
    )
    assert found.count(">standard<") == 1 and found.count(">20k<") == 1 and found.count(">500k<") == 1


def test_points_stand_beside_a_curve_with_their_intervals():
    rows = [
        ["sweep", 0.5, [0.4, 0.3, 0.5]],
        ["sweep", 0.7, [0.5, 0.4, 0.6]],
        ["fixed", [0.6, 0.55, 0.65], [0.45, 0.4, 0.5]],
    ]
    spec = {"x": "compute", "y": "accuracy", "group": "arm"}
    figure = {"title": "Routing", "columns": ["arm", "compute", "accuracy"], "rows": rows}
    beside = drawn(figure | {"plot": spec | {"points": ["fixed"]}})
    assert beside.count("PolyCollection") == 1  # a band for the sweep, whiskers for the point
    assert drawn(figure | {"plot": spec | {"points": ["fixed"], "diagonal": True}}) != beside


def test_named_points_have_whiskers():
    rows = [["a", [0.4, 0.3, 0.5]], ["b", [0.5, 0.4, 0.6]]]
    figure = {"title": "Arms", "columns": ["arm", "nats"], "rows": rows, "plot": {"x": "nats", "y": "arm"}}
    bare = {**figure, "rows": [[name, cell[0]] for name, cell in rows]}
    assert drawn(figure).count("<path") > drawn(bare).count("<path")


def test_two_seeds_are_needed_for_an_interval():
    assert len(curve_rows([{1: 1.0}, {1: 2.0}])[0][1]) == 3
    with pytest.raises(UserError):
        from studies.common.results import over_seeds

        over_seeds([{"y": 1.0}])
