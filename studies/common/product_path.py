"""Small models made as the product makes its own (prepare, pretrain, collect), from settings that are all
given here.

The sections of the product's parameters are filled in whole, so that nothing which somebody changes in
params.yaml reaches a study. Word-level models (``word_models``) and sub-word models (``switch_models``)
differ in what they pass.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from offramp.artifacts.artifact import Artifact, create_artifact, open_artifact
from offramp.artifacts.files import write_text
from offramp.corpus.prepare import prepare
from offramp.corpus.windows import TokenWindows
from offramp.machine.device import seed_all
from offramp.models.build import build_model
from offramp.models.native import BlockwiseLM, ModelConfig
from offramp.models.store import load_model, save_model
from offramp.params import Blockwise, Collect, Corpus, Frozen, Model, Pretrain, TokenizerParams
from offramp.states.collect import collect_states
from offramp.states.store import States
from offramp.training.pretrain import Pretrainer
from offramp.training.snapshots import Snapshots, snapshot_key
from studies.common.cache import find, identity
from studies.common.text import Document, StudyText

CPU = torch.device("cpu")
SPLITS = ("calibration", "test")
"""Of which states are kept."""

SNAPSHOT_SECONDS = 30.0
"""How often a training writes where it stands."""


class SomeWindows:
    """The windows of a split that ``indices`` (N,) name, as a split of its own."""

    def __init__(self, windows: TokenWindows, indices: np.ndarray):
        self.whole, self.indices, self.window = windows, torch.from_numpy(indices), windows.window

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        return self.whole.batch(self.indices[indices])

    def documents(self, indices: Tensor) -> np.ndarray:
        return self.whole.documents(self.indices[indices])


@dataclass
class SmallModel:
    """A model of one random seed, and its states of calibration and test documents."""

    seed: int
    data: Artifact
    lm: Artifact
    calibration: States
    test: States

    def load(self, exited_state: str = "output") -> BlockwiseLM:
        """The model; ``exited_state`` is what routing lets stand for tokens that left, whatever training
        assumed."""
        model = load_model(self.lm)
        changed = BlockwiseLM(ModelConfig.from_json(model.config.to_json() | {"exited_state": exited_state}))
        changed.load_state_dict(model.state_dict())
        return changed.eval()

    def windows(self, split: str) -> TokenWindows:
        return TokenWindows(self.data, split)


@dataclass(frozen=True)
class Recipe:
    """What a model is made from besides its data."""

    folder: Path
    """Where the model and its states are kept."""
    model: Model
    pretrain: Pretrain
    identity: dict[str, Any]
    """What the trained model is known by. It holds the digest of the code, which takes a while to compute:
    worker processes are given it."""

    @classmethod
    def of(cls, folder: Path, model: Model, pretrain: Pretrain, module: str, **more: Any) -> Recipe:
        """The recipe of a model that ``module`` makes, known by both sections and what ``more`` says."""
        known = identity(module, model=model.model_dump(), pretrain=pretrain.model_dump(), **more)
        return cls(folder, model, pretrain, known)


def study_data(
    text: StudyText,
    place: Path,
    settings: Mapping[str, Any],
    kind: Literal["word", "bpe"],
    min_count: int = 2,
) -> Artifact:
    """The ``data`` artifact at ``place``/data of some documents of the text, made where it is missing.

    ``settings``: words, document_words, calibration_fraction, test_fraction, vocab_size, window. The product
    reads files, so documents are written as files first, one each.
    """
    corpus = Corpus(
        source="files",
        hub_name=None,
        hub_config=None,
        hub_column="text",
        paths=["text"],
        document_pattern=None,
        document_characters=None,
        calibration_fraction=settings["calibration_fraction"],
        test_fraction=settings["test_fraction"],
        split_seed=0,
    )
    tokenizer = TokenizerParams(kind=kind, vocab_size=settings["vocab_size"], min_count=min_count)
    known = identity(
        __name__,
        corpus=corpus.model_dump(),
        tokenizer=tokenizer.model_dump(),
        window=settings["window"],
        words=settings["words"],
        document_words=settings["document_words"],
        text=text.sha256,
    )
    if data := find(place / "data", "data", known, {}):
        return data
    shutil.rmtree(place / "text", ignore_errors=True)
    documents = [
        beginning(document, settings["document_words"]) for document in (*text.train, *text.validation)
    ]
    for number, document in enumerate(some_documents(documents, settings["words"])):
        write_text(place / "text" / f"{number:05d}.txt", document.text)
    return prepare(corpus, tokenizer, settings["window"], place / "data", known, place)


def beginning(document: Document, words: int | None) -> Document:
    """The first ``words`` words of a document; all of it for None."""
    return document if words is None else Document(document.name, " ".join(document.text.split()[:words]))


def some_documents(documents: Sequence[Document], words: int) -> list[Document]:
    """Randomly drawn whole documents, in their order, that hold about ``words`` words together."""
    counts = np.array([len(document.text.split()) for document in documents])
    order = np.random.default_rng(0).permutation(len(documents))
    chosen = order[: 1 + int(np.searchsorted(counts[order].cumsum(), words))]
    return [documents[number] for number in sorted(chosen)]


def model_section(
    settings: Mapping[str, Any], norm: Literal["pre", "post"], block_layers: list[int] | None = None
) -> Model:
    """A native model of the sizes in ``settings``, with a readout apart from the embedding."""
    return Model(
        source="native",
        name_or_path=None,
        gguf_file=None,
        revision=None,
        exits_after=[],
        width=settings["width"],
        heads=settings["heads"],
        key_value_heads=None,
        ffn_width=settings["ffn_width"],
        block_layers=block_layers or settings["block_layers"],
        norm=norm,
        tied=False,
    )


def pretrain_section(
    settings: Mapping[str, Any], seed: int, patience: int, blockwise: Mapping[str, Any], **changes: Any
) -> Pretrain:
    """Block-wise training of all tokens in their context, with a head per block: the product's way without
    any flaw.

    ``settings``: steps, batch_size, learning_rate, evaluate_every, evaluate_windows. ``blockwise`` and
    ``changes`` replace switches.
    """
    switches = {
        "context": "keep",
        "tokens": "all",
        "hard_ratio": 0.5,
        "hard_signal": "max_prob",
        "exited_state": "output",
        "embedding": "trained",
        "later_rate": 1.0,
    }
    values = {
        "method": "blockwise",
        "head": "per_block",
        "steps": settings["steps"],
        "batch_size": settings["batch_size"],
        "learning_rate": settings["learning_rate"],
        "evaluate_every": settings["evaluate_every"],
        "evaluate_windows": settings["evaluate_windows"],
    }
    return Pretrain(
        **values | changes,
        blockwise=Blockwise(**switches | blockwise),
        exit_weights=[],
        joint_classifier=None,
        frozen=Frozen(translator="identity", rank=1, init="identity", tokens=1),  # of checkpoints
        lora=None,
        layer_dropout=0.0,
        curriculum=None,
        gradient_checkpointing=False,
        schedule="cosine",
        warmup_steps=20,
        weight_decay=0.01,
        clip_norm=1.0,
        patience=patience,
        precision="fp32",
        seed=seed,
    )


def trained(
    recipe: Recipe,
    data: Artifact,
    windows: TokenWindows | SomeWindows,
    dtype: Literal["float16", "float32"],
    initialise: Callable[[BlockwiseLM], None] | None = None,
) -> SmallModel:
    """The model of a recipe, learned from ``windows`` of ``data``, and its states as ``dtype``: made where
    missing.

    ``initialise`` sets the weights that training starts from, where they are not the product's.
    """
    lm = find(recipe.folder / "lm", "lm", recipe.identity, {"data": data})
    if lm is None:
        lm = _pretrain(recipe, data, windows, initialise)
    states = [_states(recipe, data, lm, split, dtype) for split in SPLITS]
    return SmallModel(recipe.pretrain.seed, data, lm, *states)


def _pretrain(
    recipe: Recipe,
    data: Artifact,
    windows: TokenWindows | SomeWindows,
    initialise: Callable[[BlockwiseLM], None] | None,
) -> Artifact:
    seed_all(recipe.pretrain.seed)
    model = build_model(recipe.model, recipe.pretrain, data.meta)
    assert isinstance(model, BlockwiseLM)
    if initialise is not None:
        initialise(model)
    key = snapshot_key({**recipe.identity, "data": data.digest})
    snapshots = Snapshots(recipe.folder / "resume" / key, SNAPSHOT_SECONDS)
    calibration = TokenWindows(data, "calibration")
    result = Pretrainer(model, windows, calibration, recipe.pretrain, snapshots, CPU).run()
    with create_artifact(recipe.folder / "lm", "lm", recipe.identity, {"data": data}) as out:
        save_model(model, out.path)
        out.meta.update(best=result.best)
    snapshots.delete()
    return open_artifact(recipe.folder / "lm", "lm")


def _states(
    recipe: Recipe, data: Artifact, lm: Artifact, split: str, dtype: Literal["float16", "float32"]
) -> States:
    path, known = recipe.folder / "states" / split, {**recipe.identity, "split": split, "dtype": dtype}
    inputs = {"data": data, "lm": lm}
    states = find(path, "states", known, inputs)
    if states is None:
        collect = Collect(precision="fp32", dtype=dtype, shard_tokens=65536, batch_size=64)
        windows = TokenWindows(data, split)
        states = collect_states(
            load_model(lm), windows, path, collect, params=known, inputs=inputs, device=CPU
        )
    return States(states)
