"""What the studies of seed 002 share: sub-word streams, an embedding to start from, contexts of every kind, and their reading.

The seed's vocabulary and frozen embedding were GPT-2's. Here both come from the training documents: byte-level BPE, and vectors
of which tokens stand near which (the largest eigenvectors of positive pointwise mutual information), scaled as GPT-2's are.

Published: the first tokens of the text as one ring without documents, its last tenth for validation (G2, G6). Corrected: pieces
of documents, all of one length, drawn anew for every seed from training documents; calibration and test pieces of other documents,
the same for all. A piece is as long as the seed's dialogues.

Shapes: N tokens, E token width, D context width, d_i the width of context layer i, V vocabulary.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from offramp.errors import UserError
from offramp.systems.context_vectors.model import ContextVectorConfig, ContextVectorLM
from offramp.systems.context_vectors.recurrence import parallel, previous_contexts, sequential
from offramp.systems.context_vectors.store import Contexts, write_contexts
from offramp.systems.context_vectors.training import (
    FixedPoint,
    Parts,
    Reading,
    find_contexts,
    learn_to_read,
    reading_losses,
    stopped_at,
    updates_per_epoch,
)
from studies.common.workers import PUBLISHED_SEED
from studies.common.results import study_params
from studies.common.subwords import subwords
from studies.common.text import StudyText
from studies.measures.effective_rank import rank_share

SHARED: dict[str, Any] = study_params("context_vectors")
SEEDS: list[int] = SHARED["seeds"]
PUBLISHED_STD = 0.14
"""Of GPT-2's embedding."""
HELD_OUT_SHARE = 10
"""The published validation text is the last 1 / 10 of the tokens."""
FLAWS = {
    "G1": "G1 the two models that section 1 compares differ in text, head, weight of diversity, learning rate, batch and patience",
    "G2": "G2 every amount of text has its own validation text, its last tenth",
    "G3": "G3 patience 1 on the validation text that is reported",
    "G4": "G4 the code of the parallel cache had never run: all reported perplexities are of the sequential one",
    "G5": "G5 parallel contexts have noise and are of the weights before the last step; no null for their cosine",
    "G6": "G6 effective rank without centring, a diversity that shrinks with the batch, a stream that is a ring without documents",
}


# Text -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stream:
    """Tokens (N,) and where documents begin (N,)."""

    tokens: Tensor
    begins: Tensor

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class SubWords:
    """A text as sub-words."""

    embedding: Tensor
    """(V, E)"""
    running: Tensor
    """The first training documents one after the other: what the published protocol reads."""
    pieces: dict[str, Tensor]
    """(count, length) by split: the inputs of consecutive windows with their last target."""

    @property
    def vocab_size(self) -> int:
        return len(self.embedding)

    def drawn(self, count: int, seed: int) -> Stream:
        """``count`` training pieces; those for a smaller count are the first of those for a larger one."""
        order = torch.randperm(len(self.pieces["train"]), generator=torch.Generator().manual_seed(seed))
        return pieces_stream(self.pieces["train"][order[:count]])

    def held_out(self, split: str) -> Stream:
        return pieces_stream(self.pieces[split])

    def published(self, tokens: int) -> tuple[Stream, Stream]:
        """Training and validation stream of the first ``tokens`` tokens, each one document. UserError if they are fewer."""
        if tokens > len(self.running):
            raise UserError(
                f"tokens = {tokens}: the text has {len(self.running)}; give more text, or lower them in params.yaml"
            )
        cut = tokens - tokens // HELD_OUT_SHARE
        return pieces_stream(self.running[None, :cut]), pieces_stream(self.running[None, cut:tokens])


def pieces_stream(pieces: Tensor) -> Stream:
    """Pieces (count, length) as one stream of as many documents."""
    begins = torch.zeros_like(pieces, dtype=torch.bool)
    begins[:, 0] = True
    return Stream(pieces.flatten(), begins.flatten())


def sub_words(text: StudyText, settings: dict[str, Any] = SHARED) -> SubWords:
    """The text as the studies read it: the product's own split and tokenizer, pieces inside documents.

    UserError for too little text.
    """
    found = subwords(text, settings["vocab_size"], settings["held_out"])
    pieces = {}
    for split, most in settings["pieces"].items():
        inputs, targets = found.windows(split, settings["piece"], most)
        pieces[split] = torch.cat((inputs, targets[:, -1:]), dim=1)
    train = found.tokens["train"]
    return SubWords(
        near_embedding(train, found.vocab_size, settings["width"]),
        train[: settings["running"]].clone(),
        pieces,
    )


def near_embedding(tokens: Tensor, vocab_size: int, width: int, reach: int = 4) -> Tensor:
    """Vectors (V, E) by what stands within ``reach`` tokens: the largest part of positive pointwise mutual information."""
    counts = torch.zeros(vocab_size * vocab_size, dtype=torch.float64)
    for distance in range(1, reach + 1):
        pairs = tokens[:-distance] * vocab_size + tokens[distance:]
        counts += torch.bincount(pairs, minlength=vocab_size * vocab_size)
    counts = counts.view(vocab_size, vocab_size)
    counts = counts + counts.T
    each = counts.sum(dim=0).clamp_min(1)
    information = (counts * counts.sum() / torch.outer(each, each)).log().clamp_min(0)
    values, vectors = torch.linalg.eigh(information)
    largest = values.abs().argsort(descending=True)[:width]
    embedding = vectors[:, largest] * values[largest].abs().sqrt()
    return (embedding * (PUBLISHED_STD / embedding.std())).float()


# Contexts -------------------------------------------------------------------------------------------------------------


def build(
    words: SubWords, token_input: str, seed: int, head: str = "zero", settings: dict[str, Any] = SHARED
) -> ContextVectorLM:
    """The model as drawn, on the embedding of the text."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = (settings[name] for name in ("width", "context_width", "layers"))
        model = ContextVectorLM(ContextVectorConfig(words.vocab_size, *sizes, token_input, head))
    with torch.no_grad():
        model.embedding.weight.copy_(words.embedding)
    return model


def parts_of(outputs: Iterator[list[Tensor]]) -> Iterator[tuple[slice, list[Tensor]]]:
    """Parts with the places of their tokens."""
    start = 0
    for part in outputs:
        yield slice(start, start + len(part[0])), part
        start += len(part[0])


def contexts_of(
    model: ContextVectorLM, stream: Stream, kind: str, found: Tensor | None = None
) -> Iterator[list[Tensor]]:
    """Outputs (n, d_i) of all layers for a stream, part by part; ``found`` (N, D) is what kind parallel starts from."""
    if kind == "sequential":
        return sequential(model, stream.tokens, stream.begins)
    if kind == "parallel":
        return parallel(model, stream.tokens, previous_contexts(found, stream.begins))
    nothing = torch.zeros(len(stream), model.config.context_width)
    if kind == "token_only":
        return parallel(model, stream.tokens, nothing)
    return ([output.zero_() for output in part] for part in parallel(model, stream.tokens, nothing))


def final(parts: Iterator[list[Tensor]]) -> Tensor:
    """Of the outputs of all layers, the contexts (N, D)."""
    return torch.cat([outputs[-1] for outputs in parts])


def seconds_of(parts: Iterator[list[Tensor]]) -> tuple[float, list[list[Tensor]]]:
    """How long all parts took to make, and they themselves."""
    start = time.perf_counter()
    made = list(parts)
    return time.perf_counter() - start, made


# Reading --------------------------------------------------------------------------------------------------------------


@dataclass
class Read:
    """What a model came to, look by look; lists over looks by name of the text and contexts it was judged on."""

    nll: dict[str, list[float]] = field(default_factory=dict)
    """Mean loss in nats."""
    accuracy: dict[str, list[float]] = field(default_factory=dict)

    def best(self, select: str, patience: int | None = None) -> int:
        """The place of the look that is kept, by the losses on ``select``."""
        return stopped_at(self.nll[select], patience)


def read(
    model: ContextVectorLM,
    stream: Stream,
    parts: Iterator[list[Tensor]],
    judged: dict[str, tuple[Stream, Parts]],
    how: Reading,
    looks: int,
    updates_per_look: int | None,
    seed: int,
    params: dict[str, Any],
    select: str,
    patience: int | None = None,
) -> Read:
    """Phase 2 on ``parts``, judged on every stream of ``judged`` at every look; None updates per look: one epoch.

    Leaves the model with the weights of its best look on ``select``; with ``patience`` looks end early. The cache is an artifact
    on disk that lives as long as the training.
    """
    seen, kept = Read(), {}
    for name in judged:
        seen.nll[name], seen.accuracy[name] = [], []

    def look() -> None:
        for name, (of, given) in judged.items():
            losses, right = reading_losses(model, of.tokens, of.begins, given)
            seen.nll[name].append(float(losses.double().mean()))
            seen.accuracy[name].append(float(right.double().mean()))
        if seen.best(select) == len(seen.nll[select]) - 1:
            kept.update({name: weight.clone() for name, weight in model.state_dict().items()})

    with TemporaryDirectory() as folder:
        artifact = write_contexts(Path(folder, "contexts"), stream.tokens, stream.begins, parts, params)
        contexts = Contexts(artifact, stream.tokens, stream.begins)
        learn_to_read(
            model,
            contexts,
            how,
            looks,
            updates_per_look or updates_per_epoch(contexts, how),
            look,
            seed,
            lambda: patience is not None and len(seen.nll[select]) - 1 - seen.best(select) >= patience,
        )
    model.load_state_dict(kept)
    return seen


def published_values(
    words: SubWords, token_input: str, tokens: int, settings: dict[str, Any], head: str = "zero"
) -> dict[str, float]:
    """One model as the seed made it: names without the arm. The perplexity is of the text that chose the epoch (G3).

    ``common_ppl`` and ``common_accuracy`` are of the same model on the test pieces, which are the same for every amount of text.
    """
    train, validation = words.published(tokens)
    model = build(words, token_input, PUBLISHED_SEED, head)
    found = find_contexts(
        model, train.tokens, train.begins, FixedPoint(**settings["fixed_point"]), PUBLISHED_SEED
    )
    given = {"validation": validation, "common": words.held_out("test")}
    judged = {
        name: (stream, list(parts_of(contexts_of(model, stream, "sequential"))))
        for name, stream in given.items()
    }
    seen = read(
        model,
        train,
        contexts_of(model, train, "sequential"),
        judged,
        Reading(**settings["reading"]),
        settings["epochs"],
        None,
        PUBLISHED_SEED,
        {"model": asdict(model.config)},
        "validation",
        settings["patience"],
    )
    best = seen.best("validation")
    contexts = final(part for _, part in judged["validation"][1])
    alone = final(contexts_of(model, validation, "token_only"))
    return {
        "ppl": math.exp(seen.nll["validation"][best]),
        "accuracy": seen.accuracy["validation"][best],
        "epoch": best + 1,
        "rank": rank_share(contexts),
        "rank_centred": rank_share(contexts, centred=True),
        "rank_above_token_only": rank_share(contexts) - rank_share(alone),
        "iterations": found.iterations,
        "common_ppl": math.exp(seen.nll["common"][best]),
        "common_accuracy": seen.accuracy["common"][best],
        "tokens": len(train),
    }


def read_corrected(
    words: SubWords, model: ContextVectorLM, stream: Stream, kind: str, settings: dict[str, Any], seed: int
) -> Read:
    """Phase 2 on contexts of a kind, judged on those of the same kind of the calibration and the test pieces."""
    given = {split: words.held_out(split) for split in ("calibration", "test")}
    judged = {split: (held, list(parts_of(contexts_of(model, held, kind)))) for split, held in given.items()}
    return read(
        model,
        stream,
        contexts_of(model, stream, kind),
        judged,
        Reading(**settings["reading"]),
        settings["looks"],
        settings["updates"] // settings["looks"],
        seed,
        {"model": asdict(model.config), "contexts": kind},
        "calibration",
    )
