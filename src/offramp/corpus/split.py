"""Which documents are for training, which for calibration and which for the test.

Whole documents are assigned, never parts of one: text that a model was fitted on would otherwise be near its
test.
"""

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
    """Read the whole source once: the split that it puts each document in, and how many characters it has.

    Splits are (documents,) int8: an index into SPLITS, or -1 where the source has none. UserError where the
    text is damaged: it shows here, before any work on it.
    """
    splits, characters = bytearray(), 0
    for piece in source:
        characters += len(piece.text)
        if piece.document == len(splits):
            splits.append(SPLITS.index(piece.split) if piece.split else 255)
    return np.frombuffer(bytes(splits), dtype=np.int8), characters


def assign(source_splits: np.ndarray, corpus: Corpus) -> np.ndarray:
    """The split of each document, (documents,) indices into SPLITS.

    It is the source's own, ``source_splits`` as ``survey`` gives them, or drawn by ``corpus.split_seed``
    where the source has none. UserError if there are too few documents.
    """
    if not len(source_splits):
        raise UserError(f"corpus.source = {corpus.source}: there is no text in it; {REMEDY}")
    if (source_splits >= 0).all():
        counts = np.bincount(source_splits, minlength=len(SPLITS))
        for split, count in zip(SPLITS, counts):
            if count < LEAST[split]:
                hub_split = "validation" if split == "calibration" else split
                raise UserError(
                    f"corpus.hub_name = {corpus.hub_name!r}: its split {hub_split} has {count} document(s) "
                    f"with text, at least {LEAST[split]} needed for {split}; {REMEDY}"
                )
        return source_splits
    return random_split(
        len(source_splits), corpus.calibration_fraction, corpus.test_fraction, corpus.split_seed
    )


def random_split(documents: int, calibration_fraction: float, test_fraction: float, seed: int) -> np.ndarray:
    """A random split of so many documents: (documents,) indices into SPLITS, at least LEAST of each.

    The fractions are of documents, not of text. UserError if there are too few documents.
    """
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
