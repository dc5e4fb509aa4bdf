"""Sub-words on a little made-up text: splits by document, windows inside documents, batches in the seed's
order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from offramp.errors import UserError
from studies.common.subwords import Subwords, shuffled, subwords
from studies.common.text import Document, OwnText, StudyText

END = 0
"""The token that ends a document."""


def words(count: int, seed: int) -> str:
    random = np.random.default_rng(seed)
    return " ".join(random.choice(["alpha", "beta", "gamma", "delta", "union", "people"], count))


@pytest.fixture(scope="module")
def text() -> StudyText:
    documents = [Document(str(place), words(200, place)) for place in range(11)]
    return StudyText("sotu", "made up", documents[:8], documents[8:])


@pytest.fixture(scope="module")
def data(text) -> Subwords:
    return subwords(text, 280, 0.2)


def test_windows_stay_inside_their_documents(data):
    for split in ("train", "calibration", "test"):
        tokens, targets = data.windows(split, 32)
        assert not (tokens == END).any() and torch.equal(tokens[:, 1:], targets[:, :-1])
    assert len(data.windows("train", 32, 3)[0]) == 3
    with pytest.raises(UserError, match="no document of test has the 100001 tokens"):
        data.windows("test", 100_000)


def test_splits_are_by_document(text, data):
    assert {split: len(starts) for split, starts in data.starts.items()} == {
        "train": 7,
        "calibration": 2,
        "test": 2,
    }
    fewer = subwords(text, 280, 0.2, documents=5)
    assert sum(len(starts) for starts in fewer.starts.values()) == 5


def test_the_vocabulary_is_that_of_training_text(text, data):
    own = OwnText(
        "own",
        "made up",
        [Document("a", words(400, 0)), Document("b", words(400, 1))],
        [Document("c", words(300, 2))],
        (Document("d", words(400, 3)),),
    )
    assert data.tokenizer == subwords(text, 280, 0.2).tokenizer != subwords(own, 280, 0.2).tokenizer
    assert data.encode("alpha") + data.encode(" beta") == data.encode("alpha beta")


def test_seeds_read_in_their_own_order(data):
    windows = data.windows("train", 32)
    one, two, again = (next(shuffled(*windows, 4, seed))[0] for seed in (0, 1, 0))
    assert torch.equal(one, again) and not torch.equal(one, two)
