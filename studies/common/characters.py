"""Text as characters, for the studies of the report character-systems.

* Published, experiments 1 to 4 (the report's set-up 1A): the beginning of the training text and of the
  validation text of a corpus, in 97 symbols.
* Published, experiments 5 to 11 (its set-up 1B): two repeated sentences, which its program took for
  WikiText-2 after the files of that were not found.
* Corrected: train, calibration and test of disjoint documents of real text, in their order.

Shapes: S random seeds, N windows of a split, B windows of a batch, T characters of a window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from offramp.errors import UserError
from studies.common.settings import Settings
from studies.common.text import PANGRAM, Document, OwnText, StudyText

WINDOW = 64
BATCH_SIZE = 16
SYMBOLS = "".join(map(chr, range(32, 127))) + "\n\t"
"""The 97 symbols of set-up 1A and of the corrected protocol; anything else becomes symbol 0, a space."""


class Sizes(Settings):
    """Section ``characters`` of the shared settings: how many characters of a text are used, by split."""

    published: dict[str, int]
    """Of a corpus in the published protocol of experiments 1 to 4: train and validation."""
    pangram: dict[str, int]
    """Of the two repeated sentences: train and validation."""
    corrected: dict[str, dict[str, int]]
    """Of real text in the corrected protocol, by the name of the size: train, calibration and test."""
    by_corpus: dict[str, tuple[str, ...]]
    """Names of the sizes that a corpus is used at."""

    def names(self, corpus: str) -> tuple[str, ...]:
        """Sizes at which a corpus is used; text of one's own is used whole, which is the size ``own``."""
        return ("own",) if corpus == "own" else self.by_corpus[corpus]


@dataclass(frozen=True)
class Characters:
    """Symbols of each split, and how they are cut into windows and batches."""

    splits: dict[str, Tensor]
    """Ids (number of characters,) by split."""
    symbols: str
    whole_batches: bool = False
    """Leave out the last batch of an epoch where it is smaller, as in set-up 1B."""
    shuffled: bool = True
    """A fresh order every epoch, else the order of the text, as in set-up 1B."""
    _windows: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False)

    @property
    def vocab_size(self) -> int:
        return len(self.symbols)

    def windows(self, split: str) -> tuple[Tensor, Tensor]:
        """Inputs and targets, each (N, T), of windows that do not overlap."""
        if split not in self._windows:
            ids = self.splits[split]
            rows = (len(ids) - 1) // WINDOW
            if self.whole_batches:
                rows -= rows % BATCH_SIZE
            self._windows[split] = (
                ids[: rows * WINDOW].view(rows, WINDOW),
                ids[1 : rows * WINDOW + 1].view(rows, WINDOW),
            )
        return self._windows[split]

    @property
    def batches_per_epoch(self) -> int:
        return -(-len(self.windows("train")[0]) // BATCH_SIZE)

    def epochs(self, count: int) -> list[int]:
        """Batches until the end of each of so many epochs."""
        return [self.batches_per_epoch * epoch for epoch in range(1, count + 1)]

    def batches(self, seeds: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of the training split without end, each (S, B, T): every random seed in an order of its
        own, whatever the others."""
        tokens, targets = self.windows("train")
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        order = torch.arange(len(tokens)).expand(len(seeds), -1)
        while True:
            if self.shuffled:
                order = torch.stack(
                    [torch.randperm(len(tokens), generator=generator) for generator in generators]
                )
            for indices in order.split(BATCH_SIZE, dim=1):
                yield tokens[indices], targets[indices]


def encode(text: str, symbols: str = SYMBOLS) -> Tensor:
    """Ids (number of characters,); 0 for characters that are not among ``symbols``."""
    place = {symbol: index for index, symbol in enumerate(symbols)}
    return torch.tensor([place.get(character, 0) for character in text])


def published_1a(text: StudyText, sizes: Sizes) -> Characters:
    """Set-up 1A: splits train and validation, of the beginning of the corpus."""
    documents = {"train": text.train, "validation": text.validation}
    return Characters(
        {
            split: encode("".join(document.text for document in documents[split])[:count])
            for split, count in sizes.published.items()
        },
        SYMBOLS,
    )


def published_1b(sizes: Sizes) -> Characters:
    """Set-up 1B: splits train and validation, two sentences over and over; batches in the order of the
    text."""
    symbols = "".join(sorted(set("".join(PANGRAM.values()))))
    ids = {split: encode(text[: sizes.pangram[split]], symbols) for split, text in PANGRAM.items()}
    return Characters(ids, symbols, whole_batches=True, shuffled=False)


def corrected_splits(text: StudyText, size: str, sizes: Sizes) -> Characters:
    """Splits train, calibration and test of ``size``, of disjoint documents; all of the text for ``own``.

    Calibration and test are consecutive documents of the corpus' validation part. UserError if a split has
    too little text. A model kept under an identity needs ``sizes.corrected`` of its size there: the name of a
    size does not say how long it is.
    """
    counts = dict.fromkeys(("train", "calibration", "test"), WINDOW + 1)
    if isinstance(text, OwnText):
        documents = {"train": text.train, "calibration": text.validation, "test": text.test}
        parts = {split: "".join(document.text for document in some) for split, some in documents.items()}
    else:
        counts = sizes.corrected[size]
        held_out = list(text.validation)
        parts = {
            "train": _taken(list(text.train), counts["train"]),
            "calibration": _taken(held_out, counts["calibration"]),
            "test": _taken(held_out, counts["test"]),
        }
    for split, part in parts.items():
        if len(part) < counts[split]:
            raise UserError(
                f"{text.source}: {split} has {len(part)} characters where {counts[split]} are needed; "
                "give more text"
            )
    return Characters({split: encode(part) for split, part in parts.items()}, SYMBOLS)


def document_ids(text: StudyText, size: str, sizes: Sizes) -> dict[str, Tensor]:
    """The number of the document (number of characters,) that every character of the splits of
    ``corrected_splits`` is from."""
    if isinstance(text, OwnText):
        documents = {"train": text.train, "calibration": text.validation, "test": list(text.test)}
        return {split: _numbers(list(some), None) for split, some in documents.items()}
    counts, held_out = sizes.corrected[size], list(text.validation)
    return {
        "train": _numbers(list(text.train), counts["train"]),
        "calibration": _numbers(held_out, counts["calibration"]),
        "test": _numbers(held_out, counts["test"]),
    }


def _taken(documents: list[Document], characters: int) -> str:
    """The beginning of what the first documents say; these are removed from the list, so that nobody else
    gets their rest."""
    taken, length = [], 0
    while documents and length < characters:
        taken.append(documents.pop(0).text)
        length += len(taken[-1])
    return "".join(taken)[:characters]


def _numbers(documents: list[Document], characters: int | None) -> Tensor:
    """Numbers of the first documents, repeated by their characters; removed from the list as ``_taken``
    removes them."""
    lengths: list[int] = []
    while documents and (characters is None or sum(lengths) < characters):
        lengths.append(len(documents.pop(0).text))
    return torch.repeat_interleave(torch.tensor(lengths))[:characters]
