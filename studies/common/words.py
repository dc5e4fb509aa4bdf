"""Word-level models with the seeds' flaws removed, made by the product's own path: prepare, pretrain, collect.

Against seeds 003 and 004: the vocabulary is of the training documents alone, with an <unk> that training sees (I9); the
embedding is trained (I1); every exit has a head of its own (I2); every block learns from all tokens in their context
(I7); documents are split, and what stops training early is not what is reported (I5, I8). Sizes are the seeds'.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from offramp.artifacts.artifact import Artifact, create_artifact, open_artifact
from offramp.artifacts.files import write_text
from offramp.corpus.prepare import prepare
from offramp.corpus.windows import TokenWindows
from offramp.machine.device import seed_all
from offramp.models.native import BlockwiseLM, ModelConfig
from offramp.models.store import load_model, save_model
from offramp.params import Params, parse_params, read_params
from offramp.states.collect import collect_states
from offramp.states.store import States
from offramp.training.pretrain import Pretrainer
from offramp.training.snapshots import Snapshots, snapshot_key
from studies.common.cache import ROOT, find, folder
from studies.common.first_block import initialise_as_seed
from studies.common.results import study_params
from studies.common.text import Document, StudyText

WORDS: dict[str, Any] = study_params("words")
SPLITS = ("calibration", "test")
CPU = torch.device("cpu")


@dataclass
class WordModel:
    """One seed's model and what it says of the calibration and test documents (float32 states, two exits)."""

    seed: int
    data: Artifact
    lm: Artifact
    calibration: States
    test: States

    def load(self) -> BlockwiseLM:
        return load_model(self.lm)

    def windows(self, split: str) -> TokenWindows:
        return TokenWindows(self.data, split)


def word_models(text: StudyText, root: Path = Path("."), settings: dict[str, Any] = WORDS) -> list[WordModel]:
    """The models of all seeds at build/studies/<corpus>/words, made where missing or made from other settings."""
    place = folder(root, text.corpus) / "words"
    params = word_params(settings)
    data = study_data(text, place, params, settings)
    return [_word_model(place, data, word_params(settings, seed)) for seed in settings["seeds"]]


def word_params(settings: dict[str, Any], seed: int = 0) -> Params:
    """The product's parameters with this study's changes: every knob that matters here is set here."""
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
    values["tokenizer"] = {
        "kind": "word",
        "vocab_size": settings["vocab_size"],
        "min_count": settings["min_count"],
    }
    values["model"] |= {name: settings[name] for name in ("width", "heads", "ffn_width", "block_layers")}
    values["model"] |= {"source": "native", "norm": "post", "tied": False}
    values["pretrain"] |= {
        "method": "blockwise",
        "head": "per_block",
        "exit_weights": [],
        "joint_classifier": None,
        "schedule": "cosine",
        "warmup_steps": 20,
        "weight_decay": 0.01,
        "clip_norm": 1.0,
        "patience": 3,
        "precision": "fp32",
        "seed": seed,
        **{
            name: settings[name]
            for name in ("steps", "batch_size", "learning_rate", "evaluate_every", "evaluate_windows")
        },
    }
    values["pretrain"]["blockwise"] |= {
        "context": "keep",
        "tokens": "all",
        "exited_state": "output",
        "embedding": "trained",
        "later_rate": 1.0,
    }
    return parse_params(values, "pipeline/studies/params.yaml, with params.yaml")


def study_data(text: StudyText, place: Path, params: Params, settings: dict[str, Any]) -> Artifact:
    """The ``data`` artifact of some documents, made where missing; they are written as files first, one each."""
    identity = {
        "corpus": params.corpus.model_dump(),
        "tokenizer": params.tokenizer.model_dump(),
        "window": params.window,
        "words": settings["words"],
        "text": text.sha256,
    }
    if found := find(place / "data", "data", identity, {}):
        return found
    shutil.rmtree(place / "text", ignore_errors=True)
    for number, document in enumerate(some_documents([*text.train, *text.validation], settings["words"])):
        write_text(place / "text" / f"{number:05d}.txt", document.text)
    return prepare(params.corpus, params.tokenizer, params.window, place / "data", identity, place)


def some_documents(documents: list[Document], words: int) -> list[Document]:
    """Randomly drawn whole documents, in their order, that hold about ``words`` words together."""
    counts = np.array([len(document.text.split()) for document in documents])
    order = np.random.default_rng(0).permutation(len(documents))
    chosen = order[: 1 + int(np.searchsorted(counts[order].cumsum(), words))]
    return [documents[number] for number in sorted(chosen)]


def _word_model(place: Path, data: Artifact, params: Params) -> WordModel:
    here = place / str(params.pretrain.seed)
    identity = {"model": params.model.sizes(), "pretrain": params.pretrain.model_dump()}
    lm = find(here / "lm", "lm", identity, {"data": data}) or _pretrain(here, data, params, identity)
    collected = []
    for split in SPLITS:
        inputs, path = {"data": data, "lm": lm}, here / "states" / split
        artifact = find(path, "states", {"split": split}, inputs)
        if artifact is None:
            settings = SimpleNamespace(
                precision="fp32", dtype="float32", shard_tokens=65536, batch_size=params.pretrain.batch_size
            )
            artifact = collect_states(
                load_model(lm), TokenWindows(data, split), path, settings, {"split": split}, inputs, CPU
            )
        collected.append(States(artifact))
    return WordModel(params.pretrain.seed, data, lm, *collected)


def _pretrain(here: Path, data: Artifact, params: Params, identity: dict[str, Any]) -> Artifact:
    seed_all(params.pretrain.seed)
    model = BlockwiseLM(
        ModelConfig.from_json(
            params.model.sizes()
            | {
                "vocab_size": data.meta["vocab_size"],
                "window": params.window,
                "heads_per_exit": True,
            }
        )
    )
    initialise_as_seed(model)
    snapshots = Snapshots(
        here / "resume" / snapshot_key({**identity, "data": data.digest}), params.runtime.snapshot_seconds
    )
    train, calibration = TokenWindows(data, "train"), TokenWindows(data, "calibration")
    result = Pretrainer(model, train, calibration, params.pretrain, snapshots, CPU).run()
    with create_artifact(here / "lm", "lm", identity, {"data": data}) as out:
        save_model(model, out.path)
        out.meta.update(best=result.best, curve=result.curve)
    snapshots.delete()
    return open_artifact(here / "lm", "lm")
