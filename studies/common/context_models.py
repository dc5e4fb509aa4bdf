"""Models that the studies of the report context-vectors share: sub-word streams, contexts of every kind, and
the training of what reads them.

A context-vector model carries a vector from token to token, the context. Phase 1 looks for contexts that
the model maps onto themselves, without targets; phase 2 trains a token block to read the contexts that are
cached. The report's vocabulary and frozen embedding were GPT-2's. Here both come from the training
documents: byte-level BPE, and vectors of which tokens stand near which (the largest eigenvectors of
positive pointwise mutual information), scaled as GPT-2's are.

Published: the first tokens of the text as one ring without documents, its last tenth for validation.
Corrected: pieces of documents, all of one length, drawn anew for every random seed from training documents;
calibration and test pieces of other documents, the same for all. A piece is as long as the report's
dialogues.

Shapes: N tokens, n of them in a part, E token width, D context width, d_i width of context layer i, V
vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

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
from studies.common.effective_rank import rank_share
from studies.common.settings import Settings
from studies.common.subwords import subwords
from studies.common.text import StudyText

PUBLISHED_STD = 0.14
"""Of GPT-2's embedding."""
VALIDATION_PART = 10
"""The published validation text is the last 1 / 10 of the tokens."""


class PublishedContexts(Settings):
    """How models are trained as the report did it."""

    fixed_point: FixedPoint
    reading: Reading
    epochs: int
    patience: int
    """Epochs without a better one after which training stops."""


class CorrectedContexts(Settings):
    """How models are trained without the report's flaws."""

    fixed_point: FixedPoint
    reading: Reading


class ContextModels(Settings):
    """The section context_models of common/settings.yaml."""

    documents: int | None
    """Of the corpus, its first ones; None for all."""
    vocab_size: int
    held_out: float
    """Share of the documents that is for calibration, and as many again for test."""
    running: int
    """Tokens that the published protocol has."""
    piece: int
    """Tokens of one."""
    pieces: dict[str, int]
    """At most, by split."""
    width: int
    context_width: int
    layers: int
    published: PublishedContexts
    corrected: CorrectedContexts


# Text -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stream:
    """Tokens (N,) and where documents begin (N,)."""

    tokens: Tensor
    begins: Tensor

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class ContextText:
    """A text as context-vector models read it."""

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
        """Training and validation stream of the first ``tokens`` tokens, each one document.

        UserError if the text has fewer.
        """
        if tokens > len(self.running):
            raise UserError(
                f"tokens = {tokens}: the text has {len(self.running)}; give more text, or lower them in "
                "study.yaml"
            )
        cut = tokens - tokens // VALIDATION_PART
        return pieces_stream(self.running[None, :cut]), pieces_stream(self.running[None, cut:tokens])


def pieces_stream(pieces: Tensor) -> Stream:
    """Pieces (count, length) as one stream of as many documents."""
    begins = torch.zeros_like(pieces, dtype=torch.bool)
    begins[:, 0] = True
    return Stream(pieces.flatten(), begins.flatten())


def context_text(text: StudyText, models: ContextModels) -> ContextText:
    """The text as the studies read it: the product's own split and tokenizer, pieces inside documents.

    UserError for too little text.
    """
    data = subwords(text, models.vocab_size, models.held_out, models.documents)
    pieces = {}
    for split, most in models.pieces.items():
        inputs, targets = data.windows(split, models.piece, most)
        pieces[split] = torch.cat((inputs, targets[:, -1:]), dim=1)
    train = data.tokens["train"]
    return ContextText(
        near_embedding(train, data.vocab_size, models.width),
        train[: models.running].clone(),
        pieces,
    )


def near_embedding(tokens: Tensor, vocab_size: int, width: int, reach: int = 4) -> Tensor:
    """Vectors (V, E) by what stands within ``reach`` tokens: the largest part of positive pointwise mutual
    information."""
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


# Contexts ---------------------------------------------------------------------------------------------------


def build(
    text: ContextText, token_input: str, seed: int, models: ContextModels, head: str = "zero"
) -> ContextVectorLM:
    """The model as drawn, on the embedding of the text."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = (models.width, models.context_width, models.layers)
        model = ContextVectorLM(ContextVectorConfig(text.vocab_size, *sizes, token_input, head))
    with torch.no_grad():
        model.embedding.weight.copy_(text.embedding)
    return model


def parts_of(outputs: Iterator[list[Tensor]]) -> Iterator[tuple[slice, list[Tensor]]]:
    """Parts with the places of their tokens."""
    start = 0
    for part in outputs:
        yield slice(start, start + len(part[0])), part
        start += len(part[0])


def contexts_of(
    model: ContextVectorLM, stream: Stream, kind: str, contexts: Tensor | None = None
) -> Iterator[list[Tensor]]:
    """Outputs (n, d_i) of all layers for a stream, part by part.

    ``kind``: "sequential", the recurrence; "parallel", one pass from ``contexts`` (N, D), which has to be
    given; "token_only", one pass from nothing; "none", zeros.
    """
    if kind == "sequential":
        return sequential(model, stream.tokens, stream.begins)
    if kind == "parallel":
        assert contexts is not None
        return parallel(model, stream.tokens, previous_contexts(contexts, stream.begins))
    nothing = torch.zeros(len(stream), model.config.context_width)
    if kind == "token_only":
        return parallel(model, stream.tokens, nothing)
    return ([output.zero_() for output in part] for part in parallel(model, stream.tokens, nothing))


def final(parts: Iterator[list[Tensor]]) -> Tensor:
    """Of the outputs of all layers, the contexts (N, D)."""
    return torch.cat([outputs[-1] for outputs in parts])


# Reading ----------------------------------------------------------------------------------------------------


@dataclass
class ReadingCurves:
    """What a model came to, look by look; lists over looks by name of the text and contexts it was judged
    on."""

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
    judged: Mapping[str, tuple[Stream, Parts]],
    *,
    how: Reading,
    looks: int,
    updates_per_look: int | None,
    seed: int,
    select: str,
    patience: int | None = None,
) -> ReadingCurves:
    """Phase 2 on ``parts``, judged on every stream of ``judged`` at every look; None updates per look: one
    epoch.

    Leaves the model with the weights of its best look on ``select``; with ``patience`` looks end early. The
    cache is an artifact on disk that lives as long as the training.
    """
    curves = ReadingCurves()
    for name in judged:
        curves.nll[name], curves.accuracy[name] = [], []

    def look() -> float:
        for name, (judge, given) in judged.items():
            losses, right = reading_losses(model, judge.tokens, judge.begins, given)
            curves.nll[name].append(float(losses.double().mean()))
            curves.accuracy[name].append(float(right.double().mean()))
        return curves.nll[select][-1]

    with TemporaryDirectory() as folder:
        artifact = write_contexts(Path(folder, "contexts"), stream.tokens, stream.begins, parts, {})
        contexts = Contexts(artifact, stream.tokens, stream.begins)
        learn_to_read(
            model,
            contexts,
            how,
            look,
            looks=looks,
            updates_per_look=updates_per_look or updates_per_epoch(contexts, how),
            seed=seed,
            patience=patience,
        )
    return curves


def published_values(
    text: ContextText,
    token_input: str,
    tokens: int,
    models: ContextModels,
    how: PublishedContexts,
    seed: int,
    head: str = "zero",
) -> dict[str, float]:
    """One model as the report made it: names without the arm.

    The perplexity is of the text that chose the epoch. ``common_ppl`` and ``common_accuracy`` are of the same
    model on the test pieces, which are the same for every amount of text. Epochs go on after the training
    would have stopped, for ``patience_cost``: what the best of all of them is better by, in nats.
    """
    train, validation = text.published(tokens)
    model = build(text, token_input, seed, models, head)
    phase_1 = find_contexts(model, train.tokens, train.begins, how.fixed_point, seed)
    streams = {"validation": validation, "common": text.held_out("test")}
    judged = {
        name: (stream, list(parts_of(contexts_of(model, stream, "sequential"))))
        for name, stream in streams.items()
    }
    curves = read(
        model,
        train,
        contexts_of(model, train, "sequential"),
        judged,
        how=how.reading,
        looks=how.epochs,
        updates_per_look=None,
        seed=seed,
        select="validation",
    )
    nll, best = curves.nll["validation"], curves.best("validation", how.patience)
    contexts = final(part for _, part in judged["validation"][1])
    alone = final(contexts_of(model, validation, "token_only"))
    return {
        "ppl": math.exp(nll[best]),
        "accuracy": curves.accuracy["validation"][best],
        "epoch": best + 1,
        "epochs": min(best + 1 + how.patience, how.epochs),
        "patience_cost": nll[best] - min(nll),
        "rank": rank_share(contexts),
        "rank_centred": rank_share(contexts, centred=True),
        "rank_above_token_only": rank_share(contexts) - rank_share(alone),
        "iterations": phase_1.iterations,
        "common_ppl": math.exp(curves.nll["common"][best]),
        "common_accuracy": curves.accuracy["common"][best],
        "tokens": len(train),
    }


def read_corrected(
    text: ContextText,
    model: ContextVectorLM,
    stream: Stream,
    kind: str,
    *,
    how: Reading,
    looks: int,
    updates: int,
    seed: int,
) -> ReadingCurves:
    """Phase 2 on contexts of a kind, judged on those of the same kind of the calibration and the test pieces.

    There are ``updates`` in all, and ``looks`` at even distances.
    """
    streams = {split: text.held_out(split) for split in ("calibration", "test")}
    judged = {
        split: (held_out, list(parts_of(contexts_of(model, held_out, kind))))
        for split, held_out in streams.items()
    }
    return read(
        model,
        stream,
        contexts_of(model, stream, kind),
        judged,
        how=how,
        looks=looks,
        updates_per_look=updates // looks,
        seed=seed,
        select="calibration",
    )
