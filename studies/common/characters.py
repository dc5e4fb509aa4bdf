"""Character-level data of seed 001: the two set-ups it used, and slices of real text without their flaws.

1A (experiments 1 to 4): the first 20,000 characters of the training text and the first 5,000 of the validation text, 97 symbols.
1B (experiments 5 to 11): two repeated sentences, which the seed took for WikiText-2 after its files were not found (F9).
Corrected: train, calibration and test of disjoint documents of real text, in their order.

Shapes: S seeds, B sequences, T characters of a window.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from offramp.errors import UserError
from studies.common.text import Document, StudyText, study_text

WINDOW = 64
BATCH_SIZE = 16
SYMBOLS = "".join(map(chr, range(32, 127))) + "\n\t"
"""The 97 symbols of 1A; anything else becomes symbol 0, a space."""

PANGRAM = {
    "train": "The quick brown fox jumps over the lazy dog. " * 444,
    "validation": "A quick brown dog runs in the park. " * 142,
}
PUBLISHED_CHARACTERS = {"train": 20_000, "validation": 5_000}
SIZES = {
    "20k": {"train": 20_000, "calibration": 5_000, "test": 5_000},
    "500k": {"train": 500_000, "calibration": 10_000, "test": 40_000},
}
"""Characters of the splits of the corrected protocol."""

SIZES_OF = {"sotu": ("20k", "500k"), "wikitext": ("20k",), "own": ("own",)}
"""Sizes at which a corpus is used; text of one's own is used whole."""


@dataclass(frozen=True)
class Characters:
    """Symbols of each split, and how they are cut into windows and batches."""

    splits: dict[str, Tensor]
    """Ids (N,) by split."""
    symbols: str
    whole_batches: bool = False
    """Leave out the last batch of an epoch where it is smaller (1B)."""
    shuffled: bool = True
    """A fresh order every epoch, else the order of the text (1B)."""
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
        """Batches of the training split without end, each (S, B, T): every seed in its own order, whatever the other seeds."""
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
    """Ids (N,) of the characters; 0 for those that are not among ``symbols``."""
    place = {symbol: index for index, symbol in enumerate(symbols)}
    return torch.tensor([place.get(character, 0) for character in text])


def published_1a(text: StudyText) -> Characters:
    """Set-up 1A: splits train and validation, of the beginning of the corpus."""
    parts = {"train": text.train, "validation": text.validation}
    return Characters(
        {
            split: encode("".join(document.text for document in parts[split])[:count])
            for split, count in PUBLISHED_CHARACTERS.items()
        },
        SYMBOLS,
    )


def published_1b() -> Characters:
    """Set-up 1B: splits train and validation, two sentences over and over; batches in the order of the text."""
    symbols = "".join(sorted(set("".join(PANGRAM.values()))))
    ids = {split: encode(text, symbols) for split, text in PANGRAM.items()}
    return Characters(ids, symbols, whole_batches=True, shuffled=False)


def pangram_text() -> StudyText:
    """The text of 1B, as result files name it."""
    return StudyText(
        "pangram",
        "two repeated sentences, no corpus",
        [Document("pangram", PANGRAM["train"])],
        [Document("pangram", PANGRAM["validation"])],
    )


@dataclass(frozen=True)
class OwnText(StudyText):
    """Text of one's own: ``validation`` is for calibration, and the test text comes apart."""

    test: tuple[Document, ...] = ()

    @cached_property
    def sha256(self) -> str:
        """Digest of the names and texts of all three files."""
        return StudyText(self.corpus, self.source, self.train, [*self.validation, *self.test]).sha256


def own_text(train: Path, calibration: Path, test: Path) -> OwnText:
    """UTF-8 files as the three splits. UserError for one that cannot be read."""
    parts = []
    for option, path in (("--train", train), ("--calibration", calibration), ("--test", test)):
        try:
            parts.append([Document(path.name, path.read_text(encoding="utf-8"))])
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"{option} = {str(path)!r} cannot be read ({error}); name a UTF-8 text file"
            ) from None
    return OwnText(
        "own",
        ", ".join(path.name for path in (train, calibration, test)),
        parts[0],
        parts[1],
        tuple(parts[2]),
    )


def text_of(corpus: str) -> StudyText:
    """The text of ``pangram``, ``sotu`` or ``wikitext``."""
    return pangram_text() if corpus == "pangram" else study_text(corpus)


def corrected(text: StudyText, size: str) -> Characters:
    """Splits train, calibration and test of ``size`` (see SIZES), of disjoint documents; all of the text for ``own``.

    Calibration and test are consecutive documents of the corpus' validation part. UserError if a split has too little text.
    """
    if isinstance(text, OwnText):
        found = {"train": text.train, "calibration": text.validation, "test": text.test}
        parts = {
            split: "".join(document.text for document in documents) for split, documents in found.items()
        }
    else:
        counts = SIZES[size]
        held_out = list(text.validation)
        parts = {
            "train": _taken(list(text.train), counts["train"]),
            "calibration": _taken(held_out, counts["calibration"]),
            "test": _taken(held_out, counts["test"]),
        }
    for split, part in parts.items():
        wanted = WINDOW + 1 if isinstance(text, OwnText) else SIZES[size][split]
        if len(part) < wanted:
            raise UserError(
                f"{text.source}: {split} has {len(part)} characters where {wanted} are needed; give more text"
            )
    return Characters({split: encode(part) for split, part in parts.items()}, SYMBOLS)


def _taken(documents: list[Document], characters: int) -> str:
    """The beginning of what the first documents say; these are removed from the list, so that nobody else gets their rest."""
    taken, length = [], 0
    while documents and length < characters:
        taken.append(documents.pop(0).text)
        length += len(taken[-1])
    return "".join(taken)[:characters]
