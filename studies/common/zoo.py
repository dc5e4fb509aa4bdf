"""Small sub-word models for the studies of training methods and exit signals: one recipe, arms that differ in one thing.

Every arm is trained on the same windows of the same documents, seed by seed, with one CPU thread, so that results do not
depend on how many arms run at a time. A fifth of the training windows is held back: unseen windows of seen documents, the
evaluation set that seed 003 mistook for unseen text.
"""

from __future__ import annotations

import argparse
import multiprocessing
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offramp.artifacts.artifact import Artifact, create_artifact, open_artifact
from offramp.corpus.windows import TokenWindows
from offramp.machine.device import seed_all, setup
from offramp.models.native import BlockwiseLM, ModelConfig
from offramp.models.store import load_model, save_model
from offramp.params import Params, parse_params, read_params
from offramp.routing.cost import full_depth_flops
from offramp.states.collect import collect_states
from offramp.states.store import States
from offramp.training.pretrain import Pretrainer
from offramp.training.snapshots import Snapshots, snapshot_key
from studies.common.cache import ROOT, find, folder
from studies.common.results import study_params
from studies.common.text import CORPORA, StudyText, study_text
from studies.common.words import study_data

CPU = torch.device("cpu")
HELD_BACK = 5
"""Every fifth training window is held back."""

FLAWED = {"head": "shared", "tokens": "hard", "context": "repack", "embedding": "frozen", "later_rate": 0.1}
ARMS: dict[str, dict[str, Any]] = {
    "base": {},
    "head frozen": {"head": "frozen"},
    "head shared": {"head": "shared"},
    "hard tokens": {"tokens": "hard"},
    "hard tokens repacked": {"tokens": "hard", "context": "repack"},
    "embedding frozen": {"embedding": "frozen"},
    "published": FLAWED,
    "published, embedding trained": FLAWED | {"embedding": "trained"},
    "published, head frozen": FLAWED | {"head": "frozen"},
    "published, context kept": FLAWED | {"context": "keep"},
    "published, all tokens in context": FLAWED | {"context": "keep", "tokens": "all"},
    "block-wise": {"long": True},
    "joint": {"long": True, "method": "joint"},
    "final": {"long": True, "method": "final", "head": "shared"},
    "joint, three exits": {"long": True, "method": "joint", "block_layers": [1, 1, 2]},
}
"""What each arm changes: a method, block_layers, or switches of block-wise training. ``exited_state`` needs no training.

Long arms take ``long_steps``: trained as briefly as the others, joint models gain nothing from depth and there is nothing to route.
"""


class SomeWindows:
    """The windows of a split that ``indices`` name, as a split of its own."""

    def __init__(self, windows: TokenWindows, indices: np.ndarray):
        self.whole, self.indices, self.window = windows, torch.from_numpy(indices), windows.window

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.whole.batch(self.indices[indices])

    def documents(self, indices: Tensor) -> np.ndarray:
        return self.whole.documents(self.indices[indices])


def trained_and_held_back(data: Artifact) -> tuple[SomeWindows, SomeWindows]:
    windows = TokenWindows(data, "train")
    held_back = np.arange(len(windows)) % HELD_BACK == HELD_BACK - 1
    return SomeWindows(windows, np.flatnonzero(~held_back)), SomeWindows(windows, np.flatnonzero(held_back))


@dataclass
class ZooModel:
    """One arm and seed: the model and its states of calibration and test documents (float16)."""

    arm: str
    seed: int
    data: Artifact
    lm: Artifact
    calibration: States
    test: States

    def load(self, exited_state: str = "output") -> BlockwiseLM:
        """The model; ``exited_state`` is what routing lets stand for tokens that left, whatever training assumed."""
        model = load_model(self.lm)
        changed = BlockwiseLM(ModelConfig.from_json(model.config.to_json() | {"exited_state": exited_state}))
        changed.load_state_dict(model.state_dict())
        return changed.eval()

    def windows(self, split: str) -> TokenWindows:
        return TokenWindows(self.data, split)


def zoo(
    text: StudyText, arms: list[str], root: Path = Path("."), settings: dict[str, Any] | None = None
) -> list[ZooModel]:
    """Models of the arms for every seed, arm by arm, made where missing; ``settings`` is the section zoo of the parameters."""
    settings = settings or study_params("zoo")
    setup("cpu", 1)
    place = folder(root, text.corpus) / "zoo"
    data = study_data(text, place, arm_params("base", 0, settings), settings)
    jobs = [(place, arm, seed, settings) for arm in arms for seed in settings["seeds"]]
    missing = [job for job in jobs if _made(data, *job) is None]
    if missing:  # a process per core: small models leave a second thread idle
        with multiprocessing.get_context("spawn").Pool(min(settings["processes"], len(missing))) as pool:
            for _ in pool.imap_unordered(_make, missing):
                pass
    return [_open(data, *job) for job in jobs]


def arm_params(arm: str, seed: int, settings: dict[str, Any]) -> Params:
    """The product's parameters for one arm; joint and final get the steps that cost as many FLOPs as the base arm's."""
    change = ARMS[arm]
    settings = settings | {"steps": settings["long_steps"] if "long" in change else settings["steps"]}
    values = read_params(ROOT / "params.yaml").model_dump()
    values["window"] = settings["window"]
    values["corpus"] |= {
        "source": "files",
        "paths": ["text"],
        "document_pattern": None,
        "document_characters": None,
        "split_seed": 0,
        "calibration_fraction": settings["calibration_fraction"],
        "test_fraction": settings["test_fraction"],
    }
    values["tokenizer"] = {"kind": "bpe", "vocab_size": settings["vocab_size"], "min_count": 2}
    values["model"] |= {name: settings[name] for name in ("width", "heads", "ffn_width", "block_layers")}
    values["model"] |= {"source": "native", "norm": "pre", "tied": False}
    values["model"] |= {name: change[name] for name in change if name == "block_layers"}
    values["exits"] |= {"confidence": "learned", "mode": "post"}
    values["pretrain"] |= {
        "method": "blockwise",
        "head": "per_block",
        "exit_weights": [],
        "joint_classifier": None,
        "schedule": "cosine",
        "warmup_steps": 20,
        "weight_decay": 0.01,
        "clip_norm": 1.0,
        "patience": 5,
        "precision": "fp32",
        "seed": seed,
        **{
            name: settings[name]
            for name in ("steps", "batch_size", "learning_rate", "evaluate_every", "evaluate_windows")
        },
    } | {name: change[name] for name in change if name in ("method", "head")}
    values["pretrain"]["blockwise"] |= {
        "context": "keep",
        "tokens": "all",
        "hard_ratio": 0.5,
        "hard_signal": "max_prob",
        "exited_state": "output",
        "embedding": "trained",
        "later_rate": 1.0,
    } | {name: change[name] for name in change if name in ("context", "tokens", "embedding", "later_rate")}
    if "method" in change:
        values["pretrain"]["steps"] = equal_flops_steps(change["method"], settings)
    return parse_params(values, "pipeline/studies/params.yaml, section zoo, with params.yaml")


def equal_flops_steps(method: str, settings: dict[str, Any]) -> int:
    """Steps of joint or final training that execute as many FLOPs as the base arm: a backward pass costs two forward ones.

    Block-wise training spends half of its steps on each block; those of the second run the first one forwards only.
    """
    first, rest, readout = _forward_flops(settings)
    blockwise = settings["steps"] / 2 * (3 * (first + readout) + first + 3 * (rest + readout))
    return round(blockwise / (3 * (first + rest + (2 if method == "joint" else 1) * readout)))


def _forward_flops(settings: dict[str, Any]) -> tuple[int, int, int]:
    """Per token: the first block, the others, and a readout."""

    def of(layers: int, vocab: int) -> int:
        config = ModelConfig(
            vocab, settings["window"], settings["width"], settings["heads"], settings["ffn_width"], (layers,)
        )
        with torch.device("meta"):
            return full_depth_flops(BlockwiseLM(config), 1, settings["window"])

    first, rest = settings["block_layers"][0], sum(settings["block_layers"][1:])
    return of(first, 0), of(rest, 0), of(first, settings["vocab_size"]) - of(first, 0)


def _identity(arm: str, seed: int, settings: dict[str, Any]) -> dict[str, Any]:
    params = arm_params(arm, seed, settings)
    return {"model": params.model.sizes(), "pretrain": params.pretrain.model_dump(), "held_back": HELD_BACK}


def _made(data: Artifact, place: Path, arm: str, seed: int, settings: dict[str, Any]) -> Artifact | None:
    here = place / _folder(arm) / str(seed)
    lm = find(here / "lm", "lm", _identity(arm, seed, settings), {"data": data})
    made = [
        lm and find(here / "states" / split, "states", {"split": split}, {"data": data, "lm": lm})
        for split in ("calibration", "test")
    ]
    return lm if all(made) else None


def _make(job: tuple[Path, str, int, dict[str, Any]]) -> None:
    """Train one model and collect its states, in a process of its own."""
    place, arm, seed, settings = job
    setup("cpu", 1)
    data, params, identity = (
        open_artifact(place / "data", "data"),
        arm_params(arm, seed, settings),
        _identity(arm, seed, settings),
    )
    here = place / _folder(arm) / str(seed)
    lm = find(here / "lm", "lm", identity, {"data": data}) or _pretrain(here, data, params, identity)
    for split in ("calibration", "test"):
        collecting = SimpleNamespace(precision="fp32", dtype="float16", shard_tokens=65536, batch_size=64)
        collect_states(
            load_model(lm),
            TokenWindows(data, split),
            here / "states" / split,
            collecting,
            {"split": split},
            {"data": data, "lm": lm},
            CPU,
        )


def _pretrain(here: Path, data: Artifact, params: Params, identity: dict[str, Any]) -> Artifact:
    seed_all(params.pretrain.seed)
    model = BlockwiseLM(
        ModelConfig.from_json(
            params.model.sizes()
            | {
                "vocab_size": data.meta["vocab_size"],
                "window": params.window,
                "heads_per_exit": params.pretrain.head == "per_block",
            }
        )
    )
    snapshots = Snapshots(
        here / "resume" / snapshot_key({**identity, "data": data.digest}), params.runtime.snapshot_seconds
    )
    train, calibration = trained_and_held_back(data)[0], TokenWindows(data, "calibration")
    result = Pretrainer(model, train, calibration, params.pretrain, snapshots, CPU).run()
    with create_artifact(here / "lm", "lm", identity, {"data": data}) as out:
        save_model(model, out.path)
        out.meta.update(best=result.best)
    snapshots.delete()
    return open_artifact(here / "lm", "lm")


def _open(data: Artifact, place: Path, arm: str, seed: int, settings: dict[str, Any]) -> ZooModel:
    here = place / _folder(arm) / str(seed)
    lm = open_artifact(here / "lm", "lm", {"data": data})
    states = [
        States(open_artifact(here / "states" / split, "states", {"lm": lm}))
        for split in ("calibration", "test")
    ]
    return ZooModel(arm, seed, data, lm, *states)


def _folder(arm: str) -> str:
    return arm.replace(", ", "-").replace(" ", "_")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", choices=CORPORA, required=True)
    corpus = parser.parse_args().corpus
    zoo(study_text(corpus), list(ARMS) if corpus == "sotu" else ["block-wise", "joint"])


if __name__ == "__main__":
    from studies.common.zoo import main  # so that worker processes find what is sent to them

    main()
