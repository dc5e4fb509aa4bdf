"""Threshold quality: what is chosen stays within the rise, whatever decides and however it runs."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from offramp.exits.held_out import held_out_text
from offramp.results.routing import HeldOutRise
from offramp.routing.cost import exit_costs
from offramp.routing.executor import Executor
from offramp.routing.policies import Scorer, ThresholdPolicy
from offramp.routing.quality import DECAYED, Calibration, QualitySearch, checked, without_decay
from offramp.states.resampling import GroupSums, interval
from tests.conftest import repository_params
from tests.routing.conftest import three_blocks

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def trained(addresses, tmp_path_factory):
    """A model of three blocks of which full depth alone was trained, so that leaving costs."""
    return three_blocks(tmp_path_factory.mktemp("quality"), addresses, 80)


def search(trained, signal="learned", kv="propagate", **changes):
    """A search on the model of three blocks, and its settings."""
    model, windows, _, exits, _ = trained
    given = {f"routing__{name}": value for name, value in {"control_windows": 40, **changes}.items()}
    settings = repository_params(model__block_layers=[1, 2, 1], threshold="quality", **given).routing
    scorer = Scorer(exits, signal, CPU)
    costs = exit_costs(model, 32, scorer.reads_out, scorer.flops_per_token, first=settings.first_exit, kv=kv)
    calibration = Calibration(Executor(model, kv), windows)
    return QualitySearch(calibration, exits, scorer, np.array(costs), settings), settings


def policy_of(trained, signal, settings, thresholds):
    model, _, _, exits, _ = trained
    return ThresholdPolicy(
        model,
        Scorer(exits, signal, CPU),
        thresholds,
        first=settings.first_exit,
        decay=settings.decay,
        keep_first=settings.keep_first,
    )


CASES = {
    "learned": {"quality": 2.0},
    "max_prob": {"quality": 10.0},
    "margin": {"quality": 10.0, "kv": "drop"},
    "entropy": {"quality": 10.0, "kv": "recompute"},
    "max_logit": {"quality": 10.0, "first_exit": 1},
    "max_minus_mean": {"quality": 10.0, "keep_first": 3},
    "margin_prob": {"quality": 10.0, "decay": 2.0},
    "saturation": {"quality": 10.0, "decay": 0.5, "keep_first": 1, "first_exit": 1},
    "patience": {"quality": 50.0},
}


@pytest.mark.parametrize("signal", CASES)
def test_what_is_chosen_stays_within_the_rise_when_it_is_run_again(trained, signal):
    """Run window by window, held against the cached loss at full depth of the same tokens."""
    model, windows, _, exits, _ = trained
    case = dict(CASES[signal])
    kv = case.pop("kv", "propagate")
    searched, settings = search(trained, signal, kv, **case)
    thresholds, promise = searched.choose()
    text = held_out_text(exits, signal)
    numbers = np.unique(text.sequence)
    numbers = numbers[np.linspace(0, len(numbers) - 1, min(40, len(numbers))).astype(int)]
    policy, losses, early = policy_of(trained, signal, settings, thresholds), {}, 0
    for number in numbers:
        run = Executor(model, kv).run(*windows.batch([number]), policy)
        losses |= {(number, place): float(loss) for place, loss in enumerate(run.loss[0])}
        assert (run.exit[0, : settings.keep_first] == 2).all() and (run.exit >= settings.first_exit).all()
        early += int((run.exit < 2).sum())
    rows = np.isin(text.sequence, numbers)
    now = [losses[key] for key in zip(text.sequence[rows], text.position[rows])]
    added = np.array(now) - text.loss[-1][rows]
    assert promise.tokens == rows.sum() and promise.groups == len(numbers)
    assert promise.grouped_by == "windows", "there are three documents"
    assert promise.rise == pytest.approx(np.expm1(added.mean()), abs=1e-5)
    draws = GroupSums(text.sequence[rows], {"added": added}).resample(settings.bootstrap, settings.seed)
    bounds = interval(np.expm1(draws["added"]))
    assert bounds[1] <= settings.quality / 100 + 1e-5
    assert promise.place == 0 or promise.interval == pytest.approx(bounds, abs=1e-5)
    assert (early > 0) == (promise.place > 0)
    if signal in ("learned", "max_logit", "margin_prob"):
        assert early > 0, "the cases are to let some leave"


def test_the_more_may_be_lost_the_more_leave(trained):
    searched, _ = search(trained)
    ends = []
    for allowed in (0.0, 0.005, 0.02, 0.1, 1.0):
        searched.allowed = allowed
        ends.append(searched.choose()[1].place)
    assert ends == sorted(ends) and ends[-1] > ends[0]


def test_a_rise_that_just_fits_is_not_taken(trained):
    """It is the upper end of the interval that has to be within."""
    searched, _ = search(trained)
    place = len(searched._path) // 2
    rise = searched.rise(place)
    assert rise.interval[0] < rise.mean < rise.interval[1]
    searched.allowed = rise.mean
    assert searched.choose()[1].place < place


@pytest.mark.parametrize("decay", [None, 3.0])
def test_where_no_candidate_is_within_nobody_leaves(trained, decay):
    searched, settings = search(trained, decay=decay)
    searched.allowed = -0.5
    thresholds, promise = searched.choose()
    assert (promise.place, promise.rise, promise.interval) == (0, 0.0, None)
    _, windows, _, _, _ = trained
    policy = policy_of(trained, "learned", settings, thresholds)
    assert (Executor(trained[0]).run(*windows.batch(torch.arange(8)), policy).exit == 2).all()


def test_what_ties_leaves_together_or_not_at_all(trained):
    """Of patience all tie at the first exit, where all leaving costs far more than half a per cent."""
    searched, settings = search(trained, "patience", quality=0.5)
    thresholds, promise = searched.choose()
    policy = policy_of(trained, "patience", settings, thresholds)
    run = Executor(trained[0]).run(*trained[1].batch(torch.arange(16)), policy)
    assert (run.exit > 0).all()
    assert promise.interval is None or promise.interval[1] <= 0.005


@given(
    st.floats(-0.2, 0.999),
    st.floats(0, 1),
    st.floats(0.01, 30),
    st.floats(-0.2, 1.2),
)
def test_without_decay_a_confidence_reaches_what_it_reaches_with_it(confidence, place, decay, threshold):
    falls = 0.9 * threshold + 0.1 * np.exp(-decay * place)
    moved = without_decay(np.array([confidence]), np.array([place]), decay)[0]
    if abs(confidence - falls) > 1e-9:
        assert (moved >= DECAYED * threshold) == (confidence >= falls)


@pytest.mark.parametrize(
    ("rise", "bounds", "leave", "verdict"),
    [
        (0.005, [0.001, 0.009], 0.2, "kept"),
        (0.005, [0.001, 0.011], 0.2, "not established"),
        (0.02, [0.009, 0.03], 0.2, "not established"),
        (0.02, [0.011, 0.03], 0.2, "not kept"),
        (0.0, None, 0.0, "kept"),
        (0.002, None, 0.2, "not established"),
    ],
)
def test_test_text_says_kept_not_kept_or_that_it_cannot_tell(rise, bounds, leave, verdict):
    promise = HeldOutRise(
        allowed=0.01,
        rise=0.008,
        interval=[0.006, 0.01],
        tokens=3200,
        groups=12,
        grouped_by="documents",
        candidates=100,
        executed=5,
        place=30,
    )
    check = checked(promise, SimpleNamespace(ppl_increase=rise, shallow_ratio=leave), bounds)
    assert (check.verdict, check.test_rise, check.test_interval) == (verdict, rise, bounds)
    assert check.to_json().items() >= promise.to_json().items()
