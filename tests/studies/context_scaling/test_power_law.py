"""Power laws: what was published comes out of its four points, and what a fit cannot say is refused."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.errors import UserError
from studies.context_scaling.power_law import extrapolation_error, fit_power_law

TOKENS = [56_602, 110_516, 216_119, 529_173]
PUBLISHED = {
    "first": ([1503.3, 1036.3, 757.7, 536.0], -0.459, 0.993, 220_810, (-0.579, -0.339)),
    "all": ([799.42, 680.12, 500.12, 325.00], -0.411, 0.982, 75_687, (-0.580, -0.242)),
    "all, frozen": ([787.3, 648.8, 482.4, 324.5], -0.403, 0.992, 66_783, (-0.512, -0.293)),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_points_give_the_published_law_and_its_interval(name):
    values, alpha, r2, amplitude, bounds = PUBLISHED[name]
    law = fit_power_law(TOKENS, values)
    assert (round(law.alpha, 3), round(law.r2, 3)) == (alpha, r2)
    assert law.amplitude == pytest.approx(amplitude, rel=2e-3)
    assert (law.low, law.high) == pytest.approx(bounds, abs=2e-3)


@settings(max_examples=20, deadline=None)
@given(st.floats(-2, 2), st.floats(0.01, 100))
def test_an_exact_law_is_found_and_continued(alpha, amplitude):
    sizes = [1.0, 3.0, 10.0, 50.0]
    law = fit_power_law(sizes, [amplitude * size**alpha for size in sizes])
    assert law.alpha == pytest.approx(alpha, abs=1e-9)
    assert law.predict(200.0) == pytest.approx(amplitude * 200.0**alpha)
    assert extrapolation_error(sizes, [amplitude * size**alpha for size in sizes]) == pytest.approx(
        0, abs=1e-8
    )


def test_a_floor_shows_in_the_held_out_size():
    sizes = [10.0, 100.0, 1000.0, 10_000.0]
    assert extrapolation_error(sizes[::-1], [5 + 100 / size for size in sizes[::-1]]) > 0
    values = [3.0, 2.0, 1.0, 1.0]
    expected = math.log(1.0 / fit_power_law(sizes[:3], values[:3]).predict(10_000.0))
    assert extrapolation_error(sizes, values) == pytest.approx(expected)


def test_what_has_no_fit_is_named():
    with pytest.raises(UserError, match=r"sizes = \[10, 20\] are fewer than 3"):
        fit_power_law([10, 20], [3.0, 2.0])
    with pytest.raises(UserError, match="fewer than 3 different"):
        fit_power_law([10, 10, 20], [3.0, 3.0, 2.0])
    with pytest.raises(UserError, match="fewer than 3"):
        extrapolation_error([10, 20, 30], [3.0, 2.0, 1.0])
    with pytest.raises(UserError, match="one value per size"):
        fit_power_law([10, 20, 30], [3.0, 2.0])
    with pytest.raises(UserError, match=r"values = \[3.0, 0.0, 1.0\] have no logarithms"):
        fit_power_law([10, 20, 30], [3.0, 0.0, 1.0])
