"""A finished small project, and its test split routed."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from offramp.artifacts.artifact import open_artifact
from offramp.corpus.windows import TokenWindows
from offramp.exits.store import Exits
from offramp.routing.executor import Executor
from offramp.routing.policies import Scorer, ThresholdPolicy
from offramp.routing.split import CachedSplit, run_split
from offramp.states.store import States
from tests.conftest import repository_params
from tests.fixtures.small_project import make_project


@pytest.fixture(scope="package")
def split(addresses, tmp_path_factory):
    """A test split of which half of the tokens left, by the classifier, with all that it was made of."""
    root = tmp_path_factory.mktemp("split")
    model = make_project(root, addresses)
    data = open_artifact(root / "data", "data")
    states, exits = (
        States(open_artifact(root / "states/test", "states")),
        Exits(open_artifact(root / "models/exits", "exits")),
    )
    windows = TokenWindows(data, "test")
    scorer = Scorer(exits, "learned", torch.device("cpu"))
    confidence = scorer.on_cached(states)
    executor = Executor(model)
    policy = ThresholdPolicy(model, scorer, [float(np.median(confidence[0]))])
    settings = repository_params(
        routing__control_windows=12,
        routing__batch_size=4,
        routing__bootstrap=200,
        routing__timing_batches=4,
        routing__curve_fractions=[0.3, 0.7],
    ).routing
    routed = run_split(executor, windows, torch.arange(len(windows)), policy=policy, batch_size=4)
    return SimpleNamespace(
        model=model,
        windows=windows,
        states=states,
        exits=exits,
        executor=executor,
        policy=policy,
        settings=settings,
        confidence=confidence,
        cached=CachedSplit.of(states),
        routed=routed,
    )
