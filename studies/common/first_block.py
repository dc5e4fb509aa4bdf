"""Seeds 003 and 004 as they were run, up to the first block: words, never-trained embedding, shared head.

One training of block 0 serves both seeds. Seed 003 goes on from the weights that are best on a random 20 % of the
training windows; seed 004 looks at the weights that are best on the validation windows. Seed 004 itself trained on all
training windows, here on 80 % of them: the one deviation. Exact layout: two blocks of two post-norm layers, width 64.

Shapes: B sequences, T positions, N tokens, D width, V vocabulary.
"""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from offramp.artifacts.artifact import Artifact, create_artifact, open_artifact
from offramp.machine.device import seed_all
from offramp.models.native import BlockwiseLM, ModelConfig
from offramp.models.store import load_model, save_model
from offramp.states.collect import collect_states
from offramp.states.statistics import Readout, predictions
from offramp.states.store import States
from offramp.training.losses import total_nll
from offramp.training.snapshots import Snapshots, snapshot_key
from studies.common.cache import find, folder
from studies.common.results import study_params
from studies.common.text import Document, StudyText

PUBLISHED: dict[str, Any] = study_params("exit_labels")["published"]
LATER = ("later_rate", "later_max_epochs", "exit_epochs", "hard_ratio")
"""Settings of what comes after the first block."""

RESERVED = ("<unk>", "<pad>")
"""The seed's ids 0 and 1; in texts that spell unknown words "<unk>" that is a word like any other."""


class BlockInputs(Protocol):
    """What a block is trained on: inputs (B, T, D) and targets (B, T) of the sequences with the given indices."""

    def __len__(self) -> int: ...
    def states(self, indices: Tensor) -> tuple[Tensor, Tensor]: ...


class WordWindows:
    """Windows of T words without overlap, each predicting the next word; incomplete batches are dropped, as in seed 003.

    Stands in for corpus.windows.TokenWindows.
    """

    def __init__(self, ids: np.ndarray, document: np.ndarray, vocab_size: int, settings: dict[str, Any]):
        """``ids`` and ``document`` (N,): every word's id and the number of the document it is from."""
        self.window, self.vocab_size = settings["window"], vocab_size
        self._ids, self._document = torch.from_numpy(ids), document
        batch = settings["batch_size"]
        self._count = (len(ids) - 1) // self.window // batch * batch

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
    """Inputs of block 0: embeddings that receive no gradient, so that they are never trained (flaw I1)."""

    def __init__(self, model: BlockwiseLM, windows: WordWindows):
        self.model, self.windows = model, windows

    def __len__(self) -> int:
        return len(self.windows)

    def states(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        words, targets = self.windows.batch(indices)
        with torch.no_grad():
            return self.model.embed(words), targets


def read_words(text: StudyText, settings: dict[str, Any]) -> tuple[dict[str, int], WordWindows, WordWindows]:
    """Vocabulary and the windows of training and validation words.

    The vocabulary is of the full training AND validation text (flaw I9), so that no word is ever unknown.
    """
    train = _words(text.train, settings["vocabulary_words"][text.corpus])
    validation = _words(text.validation, None)
    vocabulary = {word: id for id, word in enumerate(RESERVED)}
    for word in itertools.chain(train[0], validation[0]):
        vocabulary.setdefault(word, len(vocabulary))
    windows = []
    for (words, document), limits in (
        (train, settings["train_words"]),
        (validation, settings["validation_words"]),
    ):
        count = limits[text.corpus]
        ids = np.fromiter((vocabulary[word] for word in words[:count]), dtype=np.int64)
        windows.append(WordWindows(ids, document[:count], len(vocabulary), settings))
    return vocabulary, *windows


def _words(documents: list[Document], limit: int | None) -> tuple[list[str], np.ndarray]:
    words: list[str] = []
    counts = []
    for document in documents:
        found = document.text.lower().split()
        words += found
        counts.append(len(found))
        if limit is not None and len(words) >= limit:
            break
    return words[:limit], np.repeat(np.arange(len(counts)), counts)[:limit]


def seed_model(vocab_size: int, settings: dict[str, Any]) -> BlockwiseLM:
    """The seed's untrained model, with one head for both exits (flaw I2)."""
    seed_all(settings["seed"])
    model = BlockwiseLM(
        ModelConfig(
            vocab_size,
            settings["window"],
            settings["width"],
            settings["heads"],
            settings["ffn_width"],
            tuple(settings["block_layers"]),
            norm="post",
            tied=False,
        )
    )
    initialise_as_seed(model)
    return model


def initialise_as_seed(model: BlockwiseLM) -> None:
    """PyTorch's own initialisation in the blocks, embedding 0.02, heads 1/sqrt(D).

    Post-norm layers need it: with matrices as small as pre-norm layers begin with, all states soon point the same way.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    nn.init.trunc_normal_(model.embedding.weight, std=0.02)
    for head in model.heads:
        nn.init.trunc_normal_(head, std=1 / math.sqrt(model.config.width))


@dataclass
class BlockRun:
    """How the training of a block went so far; everything that changes in it but the model and the optimiser."""

    epoch: int = 0
    misses: int = 0
    best_ppl: float = math.inf
    """On the random 20 % of the block's own training sequences."""
    best: dict[str, Tensor] = field(default_factory=dict)
    held_out_ppl: float = math.inf
    held_out_best: dict[str, Tensor] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)
    """Per epoch: epoch, train_loss (nats per token), ppl, and held_out_ppl where asked for."""


def train_block(
    model: BlockwiseLM,
    block: int,
    inputs: BlockInputs,
    settings: dict[str, Any],
    rate: float,
    snapshots: Snapshots,
    held_out: BlockInputs | None = None,
) -> BlockRun:
    """Train one block and the shared head on the sum of the tokens' cross-entropies; leaves the best weights in the model.

    Early stopping on a random share of the same sequences (seed 003). Goes on after an interruption at the last epoch.
    """
    order = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(settings["seed"]))
    kept = round(len(inputs) * settings["early_stopping_share"])
    validation, training = order[:kept], order[kept:]
    parameters = [*model.blocks[block].parameters(), model.readout_matrix(block)]
    for parameter in model.parameters():
        parameter.requires_grad_(any(parameter is mine for mine in parameters))
    optimiser = torch.optim.AdamW(parameters, lr=rate, fused=True)
    run = BlockRun()
    if resumed := snapshots.load():
        run = BlockRun(**resumed["run"])
        model.load_state_dict(resumed["model"])
        optimiser.load_state_dict(resumed["optimiser"])
    while run.epoch < settings["max_epochs"] and run.misses < settings["patience"]:
        run.epoch += 1
        loss = _epoch(model, block, inputs, training, parameters, optimiser, settings, run.epoch)
        ppl = block_ppl(model, block, inputs, validation, settings["batch_size"])
        row = {"epoch": run.epoch, "train_loss": loss, "ppl": ppl}
        run.misses = 0 if ppl < run.best_ppl else run.misses + 1
        if ppl < run.best_ppl:
            run.best_ppl, run.best = ppl, _weights(model)
        if held_out is not None:
            row["held_out_ppl"] = block_ppl(
                model, block, held_out, torch.arange(len(held_out)), settings["batch_size"]
            )
            if row["held_out_ppl"] < run.held_out_ppl:
                run.held_out_ppl, run.held_out_best = row["held_out_ppl"], _weights(model)
        run.curve.append(row)
        snapshots.save({"run": vars(run), "model": model.state_dict(), "optimiser": optimiser.state_dict()})
    model.load_state_dict(run.best)
    return run


def _epoch(
    model: BlockwiseLM,
    block: int,
    inputs: BlockInputs,
    training: Tensor,
    parameters: list[nn.Parameter],
    optimiser: torch.optim.Optimizer,
    settings: dict[str, Any],
    epoch: int,
) -> float:
    """Mean loss per token of one pass in random order, a function of seed and epoch."""
    generator = torch.Generator().manual_seed(settings["seed"] * 1_000_003 + epoch)
    batches = training[torch.randperm(len(training), generator=generator)].split(settings["batch_size"])
    total = torch.zeros(())
    for indices in tqdm(batches, desc=f"block {block}, epoch {epoch}", unit="step", disable=None):
        x, targets = inputs.states(indices)
        x = model.readout_input(block, model.run_block(block, x)).flatten(0, 1)
        loss = total_nll(x, model.readout_matrix(block), targets.flatten())
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(
            parameters, settings["clip_norm"]
        )  # of a sum over 2,048 tokens: always active
        optimiser.step()
        total += loss.detach()
    return total.item() / (len(training) * settings["window"])


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
class Published:
    """What the first half of seed 003, and all of seed 004's training, leave behind."""

    settings: dict[str, Any]
    train: WordWindows
    validation: WordWindows
    block0: Artifact
    """``lm`` artifact: two blocks, of which the first is trained (seed 003); meta: block0_val_ppl, curve."""
    lm: Artifact
    """``lm`` artifact with one block: seed 004's model; meta: validation_ppl."""
    states: States
    """Seed 004's model on the validation words, float32, one exit."""
    train_states: States
    """The same on the training words."""


def published(text: StudyText, root: Path = Path("."), settings: dict[str, Any] = PUBLISHED) -> Published:
    """Everything at build/studies/<corpus>/published, made where it is missing or was made from other settings.

    Opening it again takes seconds; an interrupted training goes on at its last epoch.
    """
    _, train, validation = read_words(text, settings)
    place = folder(root, text.corpus) / "published"
    identity = {"settings": first_block_settings(settings, text.corpus), "text": text.sha256}
    block0, lm = (find(place / name, "lm", identity, {}) for name in ("block0", "lm"))
    if not (block0 and lm):
        block0, lm = _train_first_block(place, identity, train, validation, settings)
    found = []
    for name, windows in (("states", validation), ("train_states", train)):
        params = {**identity, "windows": name}
        artifact = find(place / name, "states", params, {"lm": lm})
        if artifact is None:
            collect = SimpleNamespace(
                precision="fp32", dtype="float32", shard_tokens=65536, batch_size=settings["batch_size"]
            )
            artifact = collect_states(
                load_model(lm), windows, place / name, collect, params, {"lm": lm}, torch.device("cpu")
            )
        found.append(States(artifact))
    return Published(settings, train, validation, block0, lm, *found)


def first_block_settings(settings: dict[str, Any], corpus: str) -> dict[str, Any]:
    """What the first block depends on: changing anything else does not train it again."""
    return {
        name: value[corpus] if name.endswith("_words") else value
        for name, value in settings.items()
        if name not in LATER
    }


def _train_first_block(
    place: Path,
    identity: dict[str, Any],
    train: WordWindows,
    validation: WordWindows,
    settings: dict[str, Any],
) -> tuple[Artifact, Artifact]:
    """Write the two ``lm`` artifacts of one training of block 0."""
    model = seed_model(train.vocab_size, settings)
    snapshots = Snapshots(place / "resume" / snapshot_key(identity), 0.0)
    run = train_block(
        model,
        0,
        EmbeddedWindows(model, train),
        settings,
        settings["learning_rate"],
        snapshots,
        EmbeddedWindows(model, validation),
    )
    curve = json.loads(json.dumps(run.curve))
    with create_artifact(place / "block0", "lm", identity, {}) as out:
        save_model(model, out.path)
        out.meta.update(block0_val_ppl=run.best_ppl, curve=curve)
    alone = BlockwiseLM(
        ModelConfig.from_json({**model.config.to_json(), "block_layers": settings["block_layers"][:1]})
    )
    alone.load_state_dict({name: run.held_out_best[name] for name in alone.state_dict()})
    with create_artifact(place / "lm", "lm", identity, {}) as out:
        save_model(alone, out.path)
        out.meta.update(validation_ppl=run.held_out_ppl, curve=curve)
    snapshots.delete()
    return open_artifact(place / "block0", "lm"), open_artifact(place / "lm", "lm")
