"""A finished small project with its test split routed, and a model of three blocks with its exits."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from offramp.artifacts.artifact import create_artifact, open_artifact
from offramp.corpus.prepare import prepare
from offramp.corpus.windows import TokenWindows
from offramp.exits.store import Exits
from offramp.models.native import BlockwiseLM, ModelConfig
from offramp.routing.executor import Executor
from offramp.routing.policies import Scorer, ThresholdPolicy
from offramp.routing.split import CachedSplit, run_split
from offramp.states.collect import collect_states
from offramp.states.store import States
from offramp.training.exits import train_exits
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


@pytest.fixture(scope="package")
def routed(addresses, tmp_path_factory):
    """A model of three blocks, its calibration states (three documents) and exits taught benefits."""
    return three_blocks(tmp_path_factory.mktemp("policies"), addresses)


def three_blocks(folder, addresses, steps=0):
    """The same in a folder: random weights, and so many steps of training at full depth."""
    text = repository_params(
        corpus__source="files",
        corpus__paths=[str(addresses)],
        corpus__calibration_fraction=0.3,
        corpus__test_fraction=0.2,
        tokenizer__vocab_size=400,
        window=32,
    )
    data = prepare(text.corpus, text.tokenizer, text.window, folder / "data", {})
    torch.manual_seed(0)
    model = BlockwiseLM(
        ModelConfig(
            vocab_size=data.meta["vocab_size"],
            window=32,
            width=16,
            heads=2,
            ffn_width=24,
            block_layers=(1, 2, 1),
        )
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0.0, std=0.25)
    optimiser, train = torch.optim.Adam(model.parameters(), 0.01), TokenWindows(data, "train")
    for step in range(steps):
        tokens, targets = train.batch(torch.arange(16 * step, 16 * (step + 1)) % len(train))
        logits = model.logits(2, model(tokens)[-1])
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
        optimiser.step()
    model.eval()
    with create_artifact(folder / "lm", "lm", {}, {"data": data}):
        pass
    lm = open_artifact(folder / "lm", "lm")
    settings = repository_params(collect__dtype="float32").collect
    windows = TokenWindows(data, "calibration")
    states = States(
        collect_states(
            model,
            windows,
            folder / "states",
            settings,
            params={},
            inputs={"data": data, "lm": lm},
            device=torch.device("cpu"),
        )
    )
    params = repository_params(exits__inputs="both", exits__label="divergence")
    artifact, fitted, _ = train_exits(states, params.exits, folder / "exits", {})
    return model, windows, states, Exits(artifact), fitted
