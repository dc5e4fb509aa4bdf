"""The first block of exit-labels and loss-prediction as those reports trained it: word-level, its embedding
never trained.

One training of block 0 serves both reports. exit-labels goes on from the weights that are best on a random 20
% of the training windows; loss-prediction looks at the weights that are best on the validation windows. It
trained on all training windows, here on 80 % of them: the one deviation. The layout is exact: two blocks of
two post-norm layers, width 64.

Shapes: B sequences, T positions, N tokens, D width, V vocabulary.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from offramp.artifacts.artifact import Artifact, create_artifact, open_artifact
from offramp.machine.device import seed_all
from offramp.models.native import BlockwiseLM, ModelConfig
from offramp.models.store import load_model, save_model
from offramp.params import Collect
from offramp.states.collect import collect_states
from offramp.states.statistics import Readout, predictions
from offramp.states.store import States
from offramp.training.loop import Best, Progress, Row, Training
from offramp.training.losses import total_nll
from offramp.training.snapshots import Snapshots, snapshot_key
from studies.common.cache import find, identity
from studies.common.text import Document, StudyText

RESERVED = ("<unk>", "<pad>")
"""The reports' ids 0 and 1; in texts that spell unknown words "<unk>" that is a word like any other."""


class BlockInputs(Protocol):
    """What a block is trained on: inputs (B, T, D) and targets (B, T) of the sequences with the given
    indices."""

    def __len__(self) -> int: ...
    def states(self, indices: Tensor) -> tuple[Tensor, Tensor]: ...


class WordWindows:
    """Windows of T words without overlap, each predicting the next word; incomplete batches are dropped, as
    in the report.

    Stands in for corpus.windows.TokenWindows.
    """

    def __init__(self, ids: np.ndarray, document: np.ndarray, vocab_size: int, window: int, batch_size: int):
        """``ids`` and ``document`` (N,): every word's id and the number of the document it is from."""
        self.window, self.vocab_size = window, vocab_size
        self._ids, self._document = torch.from_numpy(ids), document
        self._count = (len(ids) - 1) // window // batch_size * batch_size

    def __len__(self) -> int:
        return self._count

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, T)."""
        words = self._ids[torch.as_tensor(indices).unsqueeze(1) * self.window + torch.arange(self.window + 1)]
        return words[:, :-1].contiguous(), words[:, 1:].contiguous()

    def documents(self, indices: Tensor) -> np.ndarray:
        """(B, T): the document each input word is from."""
        return self._document[
            torch.as_tensor(indices).numpy()[:, None] * self.window + np.arange(self.window)
        ]


class EmbeddedWindows:
    """Inputs of block 0: embeddings that receive no gradient, so that they are never trained: a flaw of the
    report."""

    def __init__(self, model: BlockwiseLM, windows: WordWindows):
        self.model, self.windows = model, windows

    def __len__(self) -> int:
        return len(self.windows)

    def states(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        words, targets = self.windows.batch(indices)
        with torch.no_grad():
            return self.model.embed(words), targets


def read_words(
    text: StudyText, settings: Mapping[str, Any]
) -> tuple[dict[str, int], WordWindows, WordWindows]:
    """Vocabulary and the windows of training and validation words.

    The vocabulary is of the full training AND validation text, so that no word is ever unknown: a flaw of the
    report, for many words never occur as a training target.
    """
    train = _words(text.train, settings["vocabulary_words"][text.corpus])
    validation = _words(text.validation, None)
    vocabulary = {word: number for number, word in enumerate(RESERVED)}
    for word in itertools.chain(train[0], validation[0]):
        vocabulary.setdefault(word, len(vocabulary))
    windows = []
    for (words, document), limits in (
        (train, settings["train_words"]),
        (validation, settings["validation_words"]),
    ):
        count = limits[text.corpus]
        ids = np.fromiter((vocabulary[word] for word in words[:count]), dtype=np.int64)
        windows.append(
            WordWindows(ids, document[:count], len(vocabulary), settings["window"], settings["batch_size"])
        )
    return vocabulary, *windows


def _words(documents: Sequence[Document], limit: int | None) -> tuple[list[str], np.ndarray]:
    words: list[str] = []
    counts = []
    for document in documents:
        spoken = document.text.lower().split()
        words += spoken
        counts.append(len(spoken))
        if limit is not None and len(words) >= limit:
            break
    return words[:limit], np.repeat(np.arange(len(counts)), counts)[:limit]


def untrained_model(vocab_size: int, settings: Mapping[str, Any], seed: int) -> BlockwiseLM:
    """The report's untrained model, with one head for both exits: a flaw, for training block 1 moves it."""
    seed_all(seed)
    model = BlockwiseLM(
        ModelConfig(
            vocab_size=vocab_size,
            window=settings["window"],
            width=settings["width"],
            heads=settings["heads"],
            ffn_width=settings["ffn_width"],
            block_layers=tuple(settings["block_layers"]),
            norm="post",
            tied=False,
        )
    )
    initialise_as_published(model)
    return model


def initialise_as_published(model: BlockwiseLM) -> None:
    """PyTorch's own initialisation in the blocks, embedding 0.02, heads 1/sqrt(D).

    Post-norm layers need it: with matrices as small as pre-norm layers begin with, all states soon point the
    same way.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    nn.init.trunc_normal_(model.embedding.weight, std=0.02)
    for head in model.heads:
        nn.init.trunc_normal_(head, std=1 / math.sqrt(model.config.width))


@dataclass
class BlockRun:
    """How the training of a block went."""

    best_ppl: float
    """On the random 20 % of the block's own training sequences."""
    curve: list[dict[str, float]]
    """Per epoch: epoch, train_loss (nats per token), ppl, and held_out_ppl where asked for."""
    held_out: HeldOutBest


@dataclass
class HeldOutBest:
    """The weights with the lowest perplexity on text that does not end the training."""

    ppl: float = math.inf
    weights: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class BlockTraining:
    """How the report trains a block."""

    seed: int
    learning_rate: float
    batch_size: int
    """Sequences."""
    clip_norm: float
    max_epochs: int
    patience: int
    """Epochs without a better perplexity before the end."""
    early_stopping_share: float
    """Of the block's own training sequences, drawn at random: their perplexity says which weights are
    best."""

    @classmethod
    def of(cls, settings: Mapping[str, Any], seed: int) -> BlockTraining:
        """That of the first block, from the section first_block of the shared settings."""
        names = (name for name in cls.__dataclass_fields__ if name != "seed")
        return cls(seed=seed, **{name: settings[name] for name in names})


def train_block(
    model: BlockwiseLM,
    block: int,
    inputs: BlockInputs,
    training: BlockTraining,
    snapshots: Snapshots,
    held_out: BlockInputs | None = None,
) -> BlockRun:
    """Train one block and the shared head on the sum of the tokens' cross-entropies; leaves the best weights
    in the model.

    ``held_out``: sequences whose perplexity is looked at, too. Goes on after an interruption at the last
    epoch.
    """
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(training.seed))
    kept = round(len(inputs) * training.early_stopping_share)
    stopping, learning = order[:kept], order[kept:]
    parameters = [*model.blocks[block].parameters(), model.readout_matrix(block)]
    for parameter in model.parameters():
        parameter.requires_grad_(any(parameter is one for one in parameters))
    optimiser = torch.optim.AdamW(parameters, lr=training.learning_rate, fused=True)
    selection, elsewhere = Best(model, training.patience), HeldOutBest()
    losses: list[float] = []

    def step(epoch: int) -> None:
        # a pass in random order that depends on seed and epoch alone
        generator = torch.Generator().manual_seed(training.seed * 1_000_003 + epoch + 1)
        batches = learning[torch.randperm(len(learning), generator=generator)].split(training.batch_size)
        bar = tqdm(batches, desc=f"block {block}, epoch {epoch + 1}", unit="step", disable=None)
        losses.append(_epoch(model, block, inputs, bar, optimiser, training.clip_norm))

    def look(epoch: int) -> tuple[list[Row], float]:
        ppl = block_ppl(model, block, inputs, stopping, training.batch_size)
        row = {"epoch": epoch, "train_loss": losses[-1], "ppl": ppl}
        if held_out is not None:
            everything = torch.arange(len(held_out))
            row["held_out_ppl"] = block_ppl(model, block, held_out, everything, training.batch_size)
            if row["held_out_ppl"] < elsewhere.ppl:
                elsewhere.ppl, elsewhere.weights = row["held_out_ppl"], _weights(model)
        return [row], ppl

    progress = None
    if resumed := snapshots.load():
        progress = Progress(**resumed["progress"])
        model.load_state_dict(resumed["model"])
        optimiser.load_state_dict(resumed["optimiser"])
        selection.weights, elsewhere = resumed["best"], HeldOutBest(**resumed["held_out"])
    progress = Training(
        step=step,
        look=look,
        steps=training.max_epochs,
        looks=range(1, training.max_epochs + 1),
        selection=selection,
        snapshots=snapshots,
        state=lambda: {
            "model": model.state_dict(),
            "optimiser": optimiser.state_dict(),
            "best": selection.weights,
            "held_out": vars(elsewhere),
        },
    ).run(progress)
    return BlockRun(progress.best_loss, progress.curve, elsewhere)


def _epoch(
    model: BlockwiseLM,
    block: int,
    inputs: BlockInputs,
    batches: Iterable[Tensor],
    optimiser: torch.optim.Optimizer,
    clip_norm: float,
) -> float:
    """One pass over ``batches`` of indices (B,): the mean loss per token in nats."""
    parameters = optimiser.param_groups[0]["params"]
    total, tokens = torch.zeros(()), 0
    for indices in batches:
        x, targets = inputs.states(indices)
        x = model.readout_input(block, model.run_block(block, x)).flatten(0, 1)
        loss = total_nll(x, model.readout_matrix(block), targets.flatten())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, clip_norm)  # of a sum over 2,048 tokens: always active
        optimiser.step()
        total, tokens = total + loss.detach(), tokens + targets.numel()
    return total.item() / tokens


@torch.no_grad()
def block_ppl(model: BlockwiseLM, block: int, inputs: BlockInputs, indices: Tensor, batch_size: int) -> float:
    """Perplexity after ``block`` of the given sequences."""
    readout, losses = Readout(model.readout_matrix(block)), []
    for part in indices.split(batch_size):
        x, targets = inputs.states(part)
        x = model.readout_input(block, model.run_block(block, x)).flatten(0, 1)
        losses.append(predictions(x, readout, targets.flatten())[0])
    return math.exp(torch.cat(losses).double().mean().item())


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@dataclass
class FirstBlock:
    """What the first half of exit-labels, and all of loss-prediction's training, leave behind."""

    train: WordWindows
    validation: WordWindows
    block0: Artifact
    """``lm`` artifact: two blocks, of which the first is trained (exit-labels); meta: block0_val_ppl,
    curve."""
    lm: Artifact
    """``lm`` artifact with one block: loss-prediction's model; meta: validation_ppl."""
    states: States
    """Of loss-prediction's model on the validation words, float32, one exit."""
    train_states: States
    """The same on the training words."""


def first_block(text: StudyText, cache: Path, settings: Mapping[str, Any], seed: int) -> FirstBlock:
    """Everything at ``cache``/first_block, made where it is missing or was made from something else.

    ``settings`` is the section first_block of the shared settings. Opening everything again takes seconds; an
    interrupted training goes on at its last epoch.
    """
    _, train, validation = read_words(text, settings)
    place = cache / "first_block"
    sizes = {
        name: value[text.corpus] if name.endswith("_words") else value for name, value in settings.items()
    }
    known = identity(__name__, settings=sizes, seed=seed, text=text.sha256)
    block0, lm = (find(place / name, "lm", known, {}) for name in ("block0", "lm"))
    if not (block0 and lm):
        block0, lm = _train(place, known, train, validation, settings, seed)
    collect = Collect(
        precision="fp32", dtype="float32", shard_tokens=65536, batch_size=settings["batch_size"]
    )
    states = []
    for name, windows in (("states", validation), ("train_states", train)):
        known_states = {**known, "windows": name}
        artifact = find(place / name, "states", known_states, {"lm": lm})
        if artifact is None:
            artifact = collect_states(
                load_model(lm),
                windows,
                place / name,
                collect,
                params=known_states,
                inputs={"lm": lm},
                device=torch.device("cpu"),
            )
        states.append(States(artifact))
    return FirstBlock(train, validation, block0, lm, *states)


def _train(
    place: Path,
    known: dict[str, Any],
    train: WordWindows,
    validation: WordWindows,
    settings: Mapping[str, Any],
    seed: int,
) -> tuple[Artifact, Artifact]:
    """Write the two ``lm`` artifacts of one training of block 0, known by the identity ``known``."""
    model = untrained_model(train.vocab_size, settings, seed)
    snapshots = Snapshots(place / "resume" / snapshot_key(known), 0.0)
    inputs, held_out = (EmbeddedWindows(model, windows) for windows in (train, validation))
    run = train_block(model, 0, inputs, BlockTraining.of(settings, seed), snapshots, held_out)
    curve = json.loads(json.dumps(run.curve))
    with create_artifact(place / "block0", "lm", known, {}) as out:
        save_model(model, out.path)
        out.meta.update(block0_val_ppl=run.best_ppl, curve=curve)
    alone = BlockwiseLM(
        ModelConfig.from_json({**model.config.to_json(), "block_layers": settings["block_layers"][:1]})
    )
    alone.load_state_dict({name: run.held_out.weights[name] for name in alone.state_dict()})
    with create_artifact(place / "lm", "lm", known, {}) as out:
        save_model(alone, out.path)
        out.meta.update(validation_ppl=run.held_out.ppl, curve=curve)
    snapshots.delete()
    return open_artifact(place / "block0", "lm"), open_artifact(place / "lm", "lm")
