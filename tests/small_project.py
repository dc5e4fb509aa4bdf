"""A project folder as the pipeline leaves it, with a model of random weights: everything real, nothing trained for long."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from offramp.corpus.prepare import prepare
from offramp.corpus.windows import TokenWindows
from offramp.exits.train import train_exits
from offramp.lineage.artifact import create_artifact, open_artifact
from offramp.models.native import BlockwiseLM, ModelConfig
from offramp.models.store import save_model
from offramp.params import read_params
from offramp.states.collect import collect_states
from offramp.states.store import States
from tests.conftest import REPOSITORY
from tests.reduce_params import reduce_params


def make_project(root: Path, addresses: Path, **changes: Any) -> BlockwiseLM:
    """Write data, models/lm, states of both splits, models/exits and params.yaml, with ``changes``, under ``root``; the model."""
    shutil.copy(REPOSITORY / "params.yaml", root)
    reduce_params(root / "params.yaml", corpus__source="files", corpus__paths=[str(addresses)], corpus__calibration_fraction=0.3,
                  corpus__test_fraction=0.2, tokenizer__vocab_size=400, window=32, collect__dtype="float32", threshold="auto", **changes)
    params = read_params(root / "params.yaml")
    data = prepare(params.corpus, params.tokenizer, params.window, root / "data", {})
    torch.manual_seed(0)
    model = BlockwiseLM(ModelConfig(vocab_size=data.meta["vocab_size"], window=32, width=16, heads=2, ffn_width=24,
                                    block_layers=(1, 2), heads_per_exit=True)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=0.5 if parameter.ndim == 1 else 0.0, std=0.25)
    with create_artifact(root / "models/lm", "lm", {}, {"data": data}) as out:
        save_model(model, out.path)
    lm = open_artifact(root / "models/lm", "lm")
    for split in ("calibration", "test"):
        collect_states(model, TokenWindows(data, split), root / "states" / split, params.collect, {}, {"data": data, "lm": lm},
                       torch.device("cpu"))
    train_exits(States(open_artifact(root / "states/calibration", "states")), params.exits, root / "models/exits", {})
    return model
