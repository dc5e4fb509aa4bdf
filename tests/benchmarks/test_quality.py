"""What is held to 1 % more perplexity tells speed and rise apart, and counts as none where it rises more."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest

from benchmarks.measure import Estimate
from benchmarks.projects import set_params
from benchmarks.quality import MODELS, bar_rows
from offramp.params import read_params
from tests.conftest import REPOSITORY


@pytest.mark.parametrize("model", MODELS)
def test_the_models_are_made_with_parameters_that_exist(tmp_path, model):
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    set_params(tmp_path / "params.yaml", MODELS[model])
    assert read_params(tmp_path / "params.yaml").pretrain.method == MODELS[model]["pretrain.method"]


def ways(rise: float, high: float):
    """What both ways came to, at a rise and its upper end."""
    return SimpleNamespace(
        speed=Estimate.within(1.28, [1.25, 1.29], 58),
        ppl_increase=Estimate.within(rise, [0.004, high], 14),
        flop_saving=Estimate.within(0.26, [0.25, 0.27], 59),
        wall_saving=Estimate.within(0.22, [0.2, 0.23], 58),
    )


@pytest.mark.parametrize(
    ("measured", "speed", "rise"),
    [
        (ways(0.006, 0.008), (1.28, "met"), "met"),
        (ways(0.009, 0.012), (1.28, "met"), "not established"),
        (ways(0.011, 0.012), (1.0, "missed"), "not established"),
        (None, (1.0, "missed"), "met"),  # full depth, by definition
    ],
)
def test_speed_and_rise_have_a_verdict_each(measured, speed, rise):
    records = {row.name: row.record() for row in bar_rows("quality", "held", measured)}
    counted = records["quality_speed_at_1_percent_joint"]
    assert (counted.value, counted.verdict) == speed
    assert records["quality_ppl_increase_joint"].verdict == rise
    assert ("its 1.28x count as none" in counted.held_against) == (speed[0] == 1 and measured is not None)
    assert records["quality_flop_saving_joint"].value == pytest.approx(26 if measured else 0)


def test_everybody_leaving_at_one_exit_is_shown_without_a_bar():
    assert {row.bar for row in bar_rows("static", "held", ways(0.006, 0.008))} == {None}
