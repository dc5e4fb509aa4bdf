"""The study exit_signals: its rules on known cases, and all of it on a little made-up text."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from studies.common.study import Outcome
from studies.exit_signals.study import THREE_EXITS, _oracle, _priced, _random
from tests.fixtures.tiny_studies import run_tiny
from tests.fixtures.word_chains import chain_text

pytestmark = pytest.mark.slow

NAME = "exit_signals"


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def outcome(cache) -> Outcome:
    return run_tiny(NAME, chain_text(), "corrected", cache)


def test_every_signal_label_view_and_width_is_measured(outcome):
    for row in outcome.rows:
        names = {
            key.removeprefix("joint:").split(".headroom")[0]
            for key in row
            if key.startswith("joint:") and ".headroom" in key
        }
        assert {
            "max_prob",
            "saturation",
            "label gain",
            "label easy",
            "view both",
            "view state + previous exit",
            "width wide",
            "loss oracle",
            "divergence oracle",
            "gain oracle",
        } <= names
        assert all(value is None or math.isfinite(value) for value in row.values())
        assert {f"{THREE_EXITS}:ppl_{exit}" for exit in range(3)} <= row.keys()


def test_each_oracle_is_the_end_of_its_own_scale(outcome):
    for row in outcome.rows:
        for arm, share in (("joint", 0.5), ("block-wise", 0.3)):
            assert row[f"{arm}:gain oracle.headroom.{share}"] == pytest.approx(1)
            assert row[f"{arm}:divergence oracle.attained.{share}"] == pytest.approx(1)
            assert row[f"{arm}:divergence oracle.headroom.{share}"] < 1


def test_oracles_of_three_exits_take_the_exit_of_least_value_and_price():
    """Two tokens that lose nothing at the first exit leave first; the third costs 3 nats."""
    divergence = np.array([[0.0, 0.0, 3.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    costs = np.array([0.25, 0.5, 1.0])
    assert _oracle(divergence, divergence + 2.0, costs, 24, 0.5) == pytest.approx(2.0)
    assert _oracle(divergence, divergence + 2.0, costs, 24, 0.75) == pytest.approx(3.0)
    assert _oracle(divergence, divergence, costs, 24, 0.1) is None, "no price saves so little"


def test_tables_and_sentences_are_of_intervals_over_random_seeds(outcome):
    tables = {f"{measure}, {arm}" for measure in ("headroom", "attained") for arm in ("block-wise", "joint")}
    assert set(outcome.figures) == tables | {"three exits"}
    assert len(outcome.sentences) == 2 and "[" in outcome.sentences[0]


def test_one_random_seed_of_one_arm_has_the_values_it_has_among_others(outcome, cache):
    alone = run_tiny(NAME, chain_text(), "corrected", cache, arms=["joint"], seeds=[1])
    assert alone.rows == [{key: value for key, value in outcome.rows[1].items() if key.startswith("joint:")}]
    assert not alone.figures and not alone.sentences


def test_three_exits_are_of_the_addresses_alone(cache):
    text = chain_text()
    other = type(text)("wikitext", text.source, text.train, text.validation)
    assert run_tiny(NAME, other, "corrected", cache, arms=[THREE_EXITS]).rows == []


def test_one_price_weighs_the_best_deeper_exit():
    """Going from exit 0 to exit 1 is worth it where that alone pays, even if full depth does not."""
    gains = [np.array([[0.5, 0.5], [0.0, 0.1]]), np.array([[0.0], [0.9]])]
    costs = np.array([0.2, 0.4, 1.0])
    assert _priced(gains, costs, 1.0).tolist() == [1, 0]
    assert _priced(gains, costs, 100.0).tolist() == [0, 0]
    assert _priced(gains, costs, 0.01).tolist() == [1, 2]


def test_chance_mixes_the_two_best_fixed_depths():
    loss, costs = np.array([[4.0], [2.0], [1.0]]), np.array([0.25, 0.5, 1.0])
    assert _random(loss, costs, 0.25) == pytest.approx(1.5)  # half at exit 1, half at full depth
