"""Arms at equal updates and at equal FLOPs: limits of a training, and what it comes to within each."""

from __future__ import annotations

import math

import pytest
import torch

from offramp.systems.deep_supervision import segments_objective
from offramp.systems.objectives import named
from studies.common.characters import BATCH_SIZE, WINDOW, Characters, corrected_splits
from studies.common.comparison import (
    Compared,
    compared,
    corrected_outcome,
    flops_per_batch,
    gains,
    limits,
    passage_ppl,
    published_outcome,
    transformer,
)
from studies.common.training import Limits, on_split, train_corrected
from tests.fixtures.character_texts import own_words, sizes

MODELS = {
    name: (lambda seed: transformer(4, 97), named(loss, 4))
    for name, loss in (("dear", "sum"), ("cheap", "final"))
}
"""Losses at every layer cost more than the last one's."""


@pytest.fixture(scope="module")
def data() -> Characters:
    return corrected_splits(own_words([WINDOW * BATCH_SIZE + 1], 3 * WINDOW, 3 * WINDOW), "own", sizes())


@pytest.fixture(scope="module")
def within(data) -> Limits:
    """Of the dear arm: 11 updates, and the FLOPs of the cheap one in as many."""
    return limits(*MODELS["dear"], data, 11, MODELS["cheap"])


@pytest.fixture(scope="module")
def run(data, within):
    return train_corrected(*MODELS["dear"], data, within, look_every=4, seeds=(0, 1))


def test_the_same_flops_are_fewer_updates_of_a_dear_arm(data, within):
    dear, cheap = (flops_per_batch(*MODELS[name], data) for name in ("dear", "cheap"))
    assert within.updates == 11 and 5 < within.flops < 11
    assert 0 <= 11 * cheap - within.flops * dear < dear


def test_there_is_a_look_at_the_very_batch_of_both_limits(run, within):
    assert run.looks == sorted({4, 8, 11, within.flops})
    assert within.flops % 4, "it is between two looks, were it not for the limit"


def test_the_best_look_within_a_limit_is_chosen_by_calibration_text(run):
    for batches in run.looks:
        for member, chosen in enumerate(run.choose(batches)):
            seen = [run.calibration[run.looks.index(look)][member] for look in run.looks if look <= batches]
            assert chosen <= batches and run.calibration[run.looks.index(chosen)][member] == min(seen)


def test_an_arm_is_judged_on_test_text_within_both_limits(run, within, data):
    result = compared(run, within)
    for nll, batches in ((result.nll, within.updates), (result.flops_nll, within.flops)):
        run.choose(batches)
        assert nll == pytest.approx(on_split(run.objective, data, "test")(run.ensemble).tolist())


def test_the_passage_that_is_reported_is_read_at_the_best_look_by_the_other_text(run, within, data):
    judge = on_split(run.objective, data, "test")
    for batches in (within.updates, run.looks[0]):
        values = passage_ppl(run, batches)
        for member in range(2):
            seen = []
            for look in [look for look in run.looks if look <= batches]:
                run.ensemble.restore(run.weights[run.looks.index(look)])
                seen.append((float(judge(run.ensemble)[member]), run.looks.index(look)))
            nll = run.calibration[min(seen)[1]][member]
            assert values[member] == {"passage_ppl": pytest.approx(math.exp(nll))}


def test_what_else_is_measured_is_of_equal_updates(run, within):
    chosen = run.looks.index(run.choose(within.updates)[0])
    run.choose(within.flops)
    compared(run, within)
    assert all(
        torch.equal(weight[0], run.weights[chosen][name][0]) for name, weight in run.ensemble.weights.items()
    )


def test_cheaper_updates_go_on_to_equal_flops():
    within = Limits.of(updates=10, flops=1e9, objective=named("final", 1), flops_per_batch=60_000_000)
    assert within == Limits(10, 16)
    assert within.looks(6) == [6, 10, 12, 16]
    assert within.looks(6, at_least=20) == [6, 10, 12, 16, 18, 20]


def test_a_limit_is_a_batch_at_least():
    assert Limits.of(1, 1.0, segments_objective(2), 10) == Limits(1, 1)


def test_parameters_of_the_transformer_are_as_published():
    for layers in (1, 4):
        count = sum(weight.numel() for weight in transformer(layers, 97).parameters())
        assert count == 128 * 97 + 65_664 * layers


def test_gains_are_shares_of_perplexity():
    assert gains({"a": math.log(3.0), "b": math.log(4.0)}, "b") == pytest.approx({"gain.a": 0.25})
    assert gains({"a": 1.0}, "b") == {}


def test_rows_hold_every_size_and_arm_of_one_random_seed():
    arms = {
        (size, arm): Compared(
            [1.0, 2.0], [3.0, 4.0], [0.5, 0.6], 7, [{1.0: 2.0}] * 2, [{"extra": 1.0}, {"extra": 2.0}]
        )
        for size in ("20k", "500k")
        for arm in ("a", "b")
    }
    outcome = corrected_outcome(arms, 2, lambda nll: {"gap": nll["a"] - nll["b"]})
    first, second = outcome.rows
    assert len(first) == 2 * (2 * 3 + 2 * 3)
    assert first["20k.ppl.a"] == pytest.approx(math.e) and second["500k.flops.ppl.b"] == pytest.approx(
        math.exp(4)
    )
    assert (first["20k.extra.a"], second["20k.extra.a"], second["20k.gap"]) == (1.0, 2.0, 0.0)
    assert {row[0] for row in outcome.figures["learning_curves"]["rows"]} == {
        "20k characters",
        "500k characters",
    }


def test_without_an_arm_there_is_no_row():
    assert corrected_outcome({}, 2, dict).rows == published_outcome({}, dict).rows == []
