"""Documents to train, calibration and test: never parts of one document to two of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from offramp.corpus.sources import Source
from offramp.errors import UserError

if TYPE_CHECKING:
    from offramp.params import Corpus

SPLITS = ("train", "calibration", "test")

LEAST = {"train": 1, "calibration": 2, "test": 1}
"""Documents each split needs; calibration is itself split by document, one part to fit and one to select."""

REMEDY = (
    "give more text, or set corpus.document_pattern (matching the lines that begin a document) "
    "or corpus.document_characters"
)


def survey(source: Source) -> tuple[np.ndarray, int]:
    """Read everything once: the split given to each document (index into SPLITS, or -1) and all characters.

    Errors in the text show here, before any work on it.
    """
    given, characters = bytearray(), 0
    for piece in source:
        characters += len(piece.text)
        if piece.document == len(given):
            given.append(SPLITS.index(piece.split) if piece.split else 255)
    return np.frombuffer(bytes(given), dtype=np.int8), characters


def assign(given: np.ndarray, corpus: Corpus) -> np.ndarray:
    """The split (index into SPLITS) of each document: the source's own, or random by ``split_seed``.

    UserError if there are too few documents.
    """
    if not len(given):
        raise UserError(f"corpus.source = {corpus.source}: there is no text in it; {REMEDY}")
    if (given >= 0).all():
        counts = np.bincount(given, minlength=len(SPLITS))
        for split, count in zip(SPLITS, counts):
            if count < LEAST[split]:
                own = "validation" if split == "calibration" else split
                raise UserError(
                    f"corpus.hub_name = {corpus.hub_name!r}: its split {own} has {count} document(s) with "
                    f"text, at least {LEAST[split]} needed for {split}; {REMEDY}"
                )
        return given
    return random_split(len(given), corpus.calibration_fraction, corpus.test_fraction, corpus.split_seed)


def random_split(documents: int, calibration_fraction: float, test_fraction: float, seed: int) -> np.ndarray:
    """(documents,) indices into SPLITS, each with its LEAST; UserError if there are too few documents."""
    if documents < sum(LEAST.values()):
        raise UserError(
            f"the text has {documents} document(s), at least {sum(LEAST.values())} are needed "
            f"(1 to train on, 2 for calibration, 1 to test on); {REMEDY}"
        )
    calibration = max(LEAST["calibration"], round(documents * calibration_fraction))
    test = max(LEAST["test"], round(documents * test_fraction))
    # rounding up must leave the others their least
    test = min(test, documents - LEAST["train"] - LEAST["calibration"])
    calibration = min(calibration, documents - LEAST["train"] - test)
    order = np.random.default_rng(seed % 2**63).permutation(documents)
    splits = np.full(documents, SPLITS.index("train"), dtype=np.int8)
    splits[order[:calibration]] = SPLITS.index("calibration")
    splits[order[calibration : calibration + test]] = SPLITS.index("test")
    return splits
