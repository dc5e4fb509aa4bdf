"""The study blockwise_gap on a little made-up text: every arm is measured, and the parts of the gap add up to
it."""

from __future__ import annotations

from pathlib import Path

import pytest

from studies.blockwise_gap.study import ARMS, FROM_BASE, FROM_PUBLISHED, differences
from studies.common.study import Outcome
from tests.fixtures.tiny_studies import check_outcome, run_tiny
from tests.fixtures.word_chains import chain_text

NAME = "blockwise_gap"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def outcome(cache) -> Outcome:
    return run_tiny(NAME, chain_text(), "corrected", cache)


def test_the_outcome_is_whole(outcome):
    check_outcome(outcome, 2)
    measured = {key.partition(":")[0] for key in outcome.rows[0]}
    assert {*ARMS, *FROM_BASE, *FROM_PUBLISHED} <= measured
    assert len(outcome.figures) == 5 and len(outcome.sentences) == 2


def test_parts_add_up_to_the_gap(outcome):
    for row in outcome.rows:
        parts = ("evaluation set", "head moved by block 1", "block 1 and routing")
        assert row["gap:published"] == pytest.approx(sum(row[f"gap:{part}"] for part in parts))


def test_about_the_share_of_the_exit_ratio_leaves_and_what_stands_for_them_matters(outcome):
    for row in outcome.rows:
        assert 0.2 < row["base:share"] < 0.8
        assert row["published, exited state output:routed"] != row["published:routed"]
        assert row["published, exited state output:exit_0"] == row["published:exit_0"]


def test_a_switch_is_compared_with_where_it_starts(outcome):
    row = outcome.rows[0]
    assert row["from base:head shared:full"] == row["head shared:full"] - row["base:full"]
    start = row["published, head frozen:routed"] - row["published:routed"]
    assert row["from published:published, head frozen:routed"] == start


def test_some_arms_give_what_follows_from_them_alone(outcome, cache):
    alone = run_tiny(NAME, chain_text(), "corrected", cache, arms=["joint", "block-wise"], seeds=[0])
    assert alone.rows[0] == {key: outcome.rows[0][key] for key in alone.rows[0]}
    assert "block-wise minus joint:full" in alone.rows[0] and "gap:base" not in alone.rows[0]
    assert not alone.figures


def test_nothing_follows_from_one_arm():
    assert differences({"joint:full": 1.0, "joint:learned.0.5": 2.0}) == {}
