"""A policy is timed on every batch once, and what it loses and spares is that of one pass over all text."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch

from benchmarks import default_run
from benchmarks.both_ways import both_ways
from benchmarks.inputs import RandomWindows, model
from benchmarks.perplexity import half_leave
from offramp.app.project import open_project
from offramp.params import load_params
from offramp.results.routing import Routing
from offramp.routing.cost import executed_flops, full_depth_flops
from offramp.routing.executor import Executor
from offramp.routing.policies import FixedExit
from offramp.routing.split import run_split
from pipeline.evaluate import run as evaluate
from tests.conftest import REPOSITORY
from tests.fixtures.small_project import make_project

WINDOWS, BATCH = 38, 4


@pytest.fixture(scope="module")
def routed():
    """Random text on an untrained model: executor, windows and a policy under which about half leave."""
    lm = model(61, 16, 32, 2, 64, (1, 1, 1))
    for parameter in lm.parameters():
        torch.nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0.0, std=0.2)
    windows = RandomWindows(WINDOWS, 16, 61)
    return Executor(lm), windows, half_leave(lm, windows.batch(torch.arange(8))[0])


def test_losses_and_flops_are_those_of_one_pass(routed):
    executor, windows, policy = routed
    ways = both_ways(executor, windows, policy, BATCH)
    everything = torch.arange(WINDOWS)
    one, full = (
        run_split(executor, windows, everything, policy=of, batch_size=BATCH) for of in (policy, None)
    )
    np.testing.assert_array_equal(ways.loss, [one.loss, full.loss])
    np.testing.assert_array_equal(ways.agrees, one.argmax == full.argmax)
    assert 0 < ways.leaves.mean() == (one.exit < 2).mean() < 1
    rise = np.exp(np.mean(one.loss, dtype=np.float64) - np.mean(full.loss, dtype=np.float64)) - 1
    assert ways.ppl_increase == pytest.approx(rise)
    whole = full_depth_flops(executor.model, WINDOWS * 16, 16)
    spared = 1 - executed_flops(executor.model, one.work, policy.flops_per_token) / whole
    assert ways.flop_saving == pytest.approx(spared)
    assert ways.flop_saving.interval[0] < spared < ways.flop_saving.interval[1]


def test_repetitions_are_whole_batches_of_different_text_and_documents(routed):
    executor, windows, policy = routed
    ways = both_ways(executor, windows, policy, BATCH)
    assert ways.speed.n == ways.wall_saving.n == WINDOWS // BATCH == 9
    assert ways.ppl_increase.n == 3  # sixteen windows to a document
    assert ways.wall_over_flop_saving == pytest.approx(ways.wall_saving / ways.flop_saving)


def test_documents_not_tokens_are_resampled(routed):
    """Where all tokens of a document rise alike, the interval is as wide as that of documents."""
    executor, windows, _ = routed
    ways = both_ways(executor, windows, FixedExit(0), BATCH)
    rises = np.array([0.0, 0.1, 0.2])[ways.document]
    object.__setattr__(ways, "loss", np.stack([ways.loss[1] + rises, ways.loss[1]]))
    low, high = ways.ppl_increase.interval
    assert low == pytest.approx(0, abs=1e-4) and high > np.expm1(0.15)


def test_a_policy_under_which_nobody_leaves_has_no_ratio(routed):
    executor, windows, _ = routed
    with pytest.raises(ZeroDivisionError):
        _ = both_ways(executor, windows, FixedExit(2), BATCH).wall_over_flop_saving


@pytest.mark.slow
def test_the_default_run_is_routed_as_its_stage_routes_it(addresses, tmp_path):
    make_project(tmp_path, addresses, routing__batch_size=4)
    (tmp_path / "params.yaml").write_text(
        (tmp_path / "params.yaml").read_text().replace("threshold: auto", "threshold: quality")
    )
    shutil.copy(REPOSITORY / "dvc.yaml", tmp_path)
    evaluate(load_params("evaluate", tmp_path), tmp_path)
    (threshold,) = Routing.read(tmp_path).threshold.values()
    project = open_project(tmp_path)
    assert project.policy().thresholds == pytest.approx([threshold])
    wall, flops, ratio = default_run.rows(project)
    assert wall.name == "default_run_wall_saving" and wall.value.n >= 5
    assert ratio.value == pytest.approx(wall.value / flops.value)
    assert "threshold quality" in ratio.held_against
