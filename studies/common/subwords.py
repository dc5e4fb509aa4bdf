"""A text as sub-words: documents split, a tokenizer of the training documents, windows inside documents.

Shapes: C tokens of a split, N windows, B windows of a batch, T tokens of a window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from offramp.corpus.split import SPLITS, random_split
from offramp.corpus.tokenizer import END, Encoder, train_tokenizer
from offramp.errors import UserError
from offramp.params import TokenizerParams
from studies.common.text import Document, OwnText, StudyText


@dataclass(frozen=True)
class Subwords:
    """The tokens of every split as one stream; every document ends with <eos>, token 0."""

    tokens: dict[str, Tensor]
    """(C,) by split."""
    starts: dict[str, Tensor]
    """Where each document starts, by split."""
    tokenizer: str
    """As tokenizer.json has it."""

    @cached_property
    def vocab_size(self) -> int:
        return Tokenizer.from_str(self.tokenizer).get_vocab_size()

    @cached_property
    def _encoder(self) -> Encoder:
        return Encoder(Tokenizer.from_str(self.tokenizer), "bpe")

    def encode(self, text: str) -> list[int]:
        return self._encoder(text).tolist()

    def windows(self, split: str, window: int, most: int | None = None) -> tuple[Tensor, Tensor]:
        """Inputs and targets (N, T), none of which reaches from one document into the next.

        What is left of a document is left out. ``most``: as many windows, spread evenly over the split.
        UserError where no document fills a window.
        """
        stream, starts = self.tokens[split], self.starts[split]
        ends = torch.cat((starts[1:], torch.tensor([len(stream)])))
        begins = torch.cat(
            [
                torch.arange(int(start), max(int(start), int(end) - window), window)
                for start, end in zip(starts, ends)
            ]
        )
        if not len(begins):
            raise UserError(
                f"text: no document of {split} has the {window + 1} tokens of a window and its last target; "
                "give longer ones"
            )
        if most is not None and most < len(begins):
            begins = begins[torch.linspace(0, len(begins) - 1, most).long()]
        windows = stream[begins.unsqueeze(1) + torch.arange(window + 1)]
        return windows[:, :-1], windows[:, 1:]


def subwords(text: StudyText, vocab_size: int, held_out: float, documents: int | None = None) -> Subwords:
    """Documents drawn into train, calibration and test, and their tokens.

    Calibration and test have a share ``held_out`` of the documents each; text of one's own has its own.
    ``documents``: only so many of the corpus, its first ones. UserError for too few of them.
    """
    parts = _parts(text, held_out, documents)
    settings = TokenizerParams(kind="bpe", vocab_size=vocab_size, min_count=2)
    tokenizer = train_tokenizer(settings, (document.text for document in parts["train"]))
    encoder, end = Encoder(tokenizer, "bpe"), tokenizer.token_to_id(END)
    tokens, starts = {}, {}
    for split, chosen in parts.items():
        encoded = [np.append(encoder(document.text), end).astype(np.int64) for document in chosen]
        tokens[split] = torch.from_numpy(np.concatenate(encoded))
        starts[split] = torch.from_numpy(np.cumsum([0, *map(len, encoded[:-1])]))
    return Subwords(tokens, starts, tokenizer.to_str())


def _parts(text: StudyText, held_out: float, most: int | None) -> dict[str, list[Document]]:
    if isinstance(text, OwnText):
        return {"train": text.train, "calibration": text.validation, "test": list(text.test)}
    documents = [*text.train, *text.validation][:most]
    splits = random_split(len(documents), held_out, held_out, 0)
    return {
        split: [document for document, place in zip(documents, splits) if SPLITS[place] == split]
        for split in SPLITS
    }


def shuffled(tokens: Tensor, targets: Tensor, batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches (B, T) of windows (N, T) without end, in a fresh order every time through."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for rows in torch.randperm(len(tokens), generator=generator).split(batch_size):
            yield tokens[rows], targets[rows]
