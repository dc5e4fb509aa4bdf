"""The inputs that sweep and evaluate share, opened and checked against each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from offramp.artifacts.artifact import Artifact, open_artifact
from offramp.corpus.windows import TokenWindows
from offramp.errors import UserError
from offramp.machine.device import setup
from offramp.models.store import load_model
from offramp.params import Declared
from offramp.routing.executor import Executor
from offramp.states.store import States


@dataclass
class RoutingInputs:
    data: Artifact
    lm: Artifact
    exits: Artifact
    states: States
    windows: TokenWindows
    executor: Executor
    device: torch.device


def open_routing_inputs(params: Declared, root: Path) -> RoutingInputs:
    """Test data, model, exits and test states; UserError where one was made from another."""
    data = open_artifact(root / "data", "data")
    lm = open_artifact(root / "models/lm", "lm", inputs={"data": data})
    exits = open_artifact(root / "models/exits", "exits")
    collected = open_artifact(root / "states/test", "states", inputs={"data": data, "lm": lm})
    if exits.meta["lm"] != lm.digest:
        raise UserError(
            f"{exits.path} was trained on states of another model than {lm.path}; run `dvc repro`"
        )
    states = States(collected)
    device = setup(params.runtime.device, params.runtime.threads)
    executor = Executor(load_model(lm).to(device), params.routing.kv, states.precision)
    return RoutingInputs(data, lm, exits, states, TokenWindows(data, "test"), executor, device)
