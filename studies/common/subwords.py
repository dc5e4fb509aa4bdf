"""Sub-words for the studies of seeds 000 and 002: documents split, a tokenizer of the training documents, windows inside documents.

Shapes: C tokens of a split, N windows, T tokens of a window.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

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

    @property
    def vocab_size(self) -> int:
        return Tokenizer.from_str(self.tokenizer).get_vocab_size()

    def encode(self, text: str) -> list[int]:
        return Encoder(Tokenizer.from_str(self.tokenizer), "bpe")(text).tolist()

    def windows(self, split: str, window: int, most: int | None = None) -> tuple[Tensor, Tensor]:
        """Inputs and targets (N, T), none of which reaches from one document into the next; what is left of a document is left out.

        ``most``: as many windows, spread evenly over the split. UserError where no document fills a window.
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
                f"text: no document of {split} has the {window + 1} tokens of a window and its last target; give longer ones"
            )
        if most is not None and most < len(begins):
            begins = begins[torch.linspace(0, len(begins) - 1, most).long()]
        found = stream[begins.unsqueeze(1) + torch.arange(window + 1)]
        return found[:, :-1], found[:, 1:]


def subwords(text: StudyText, vocab_size: int, held_out: float) -> Subwords:
    """Documents drawn into train, calibration and test (a share ``held_out`` each; own text has its own), and their tokens.

    UserError for too few documents.
    """
    parts = _parts(text, held_out)
    settings = TokenizerParams(kind="bpe", vocab_size=vocab_size, min_count=2)
    tokenizer = train_tokenizer(settings, (document.text for document in parts["train"]))
    encoder, end = Encoder(tokenizer, "bpe"), tokenizer.token_to_id(END)
    tokens, starts = {}, {}
    for split, documents in parts.items():
        found = [np.append(encoder(document.text), end).astype(np.int64) for document in documents]
        tokens[split] = torch.from_numpy(np.concatenate(found))
        starts[split] = torch.from_numpy(np.cumsum([0, *map(len, found[:-1])]))
    return Subwords(tokens, starts, tokenizer.to_str())


def _parts(text: StudyText, held_out: float) -> dict[str, list[Document]]:
    if isinstance(text, OwnText):
        return {"train": text.train, "calibration": text.validation, "test": list(text.test)}
    documents = [*text.train, *text.validation]
    splits = random_split(len(documents), held_out, held_out, 0)
    return {
        split: [document for document, place in zip(documents, splits) if SPLITS[place] == split]
        for split in SPLITS
    }


def shuffled(tokens: Tensor, targets: Tensor, batch_size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of windows (N, T) without end, in a fresh order every time through."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for rows in torch.randperm(len(tokens), generator=generator).split(batch_size):
            yield tokens[rows], targets[rows]
