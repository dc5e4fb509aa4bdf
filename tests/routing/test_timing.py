"""Seconds of routing beside those of full depth."""

from __future__ import annotations

import pytest

from offramp.routing.timing import time_routing


def test_every_arm_is_timed_on_the_same_batches(split):
    timing = time_routing(split.executor, split.windows, split.policy, split.routed.exit, split.settings)
    assert timing.pairs == 4
    assert timing.wall_saving_low <= timing.wall_saving <= timing.wall_saving_high < 1
    tokens = timing.pairs * split.settings.batch_size * split.windows.window
    assert timing.full_seconds * timing.full_tokens_per_second == pytest.approx(tokens)
    assert timing.routed_seconds * timing.routed_tokens_per_second == pytest.approx(tokens)
    assert timing.skipping_saving < 1
