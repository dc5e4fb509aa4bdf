"""Text as characters: the report's two set-ups, and splits of disjoint documents."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from offramp.errors import UserError
from studies.common.characters import (
    BATCH_SIZE,
    SYMBOLS,
    WINDOW,
    corrected_splits,
    document_ids,
    encode,
    published_1a,
    published_1b,
)
from studies.common.text import Document, StudyText, text_of
from tests.fixtures.character_texts import own_words, sizes


@pytest.fixture(scope="module")
def sotu() -> StudyText:
    return text_of("sotu")


def test_set_up_1b_is_two_sentences_in_fixed_order():
    data = published_1b(sizes())
    assert (data.vocab_size, data.batches_per_epoch, len(data.windows("validation")[0])) == (30, 19, 64)
    batches = data.batches([0, 1])
    first = [next(batches)[0] for _ in range(20)]
    assert torch.equal(first[0][0], first[0][1]) and torch.equal(first[0], first[19])


def test_set_up_1a_begins_the_corpus_with_97_symbols(sotu):
    data = published_1a(sotu, sizes())
    assert len(set(SYMBOLS)) == data.vocab_size == 97
    assert [len(data.windows(split)[0]) for split in ("train", "validation")] == [312, 78]
    assert data.batches_per_epoch == 20


def test_symbols_that_are_not_in_the_vocabulary_become_the_first():
    assert encode("a\u00e9\t\n~").tolist() == [65, 0, 96, 95, 94]


def test_every_random_seed_has_an_order_of_its_own_whoever_else_trains(sotu):
    data = published_1a(sotu, sizes())
    together, alone = data.batches([3, 4]), data.batches([4])
    for _ in range(25):  # into the second epoch
        (tokens, targets), (one, _) = next(together), next(alone)
        assert torch.equal(tokens[1], one[0]) and not torch.equal(tokens[0], tokens[1])
        assert torch.equal(tokens[..., 1:], targets[..., :-1])


@pytest.mark.parametrize("size", ["20k", "500k"])
def test_splits_are_of_disjoint_documents(size, sotu):
    data, counts = corrected_splits(sotu, size, sizes()), sizes().corrected[size]
    assert {split: len(ids) for split, ids in data.splits.items()} == counts
    documents = [encode(document.text) for document in sotu.validation]
    starts = {
        split: next(
            place for place, ids in enumerate(documents) if torch.equal(ids[:200], data.splits[split][:200])
        )
        for split in ("calibration", "test")
    }
    assert starts["calibration"] == 0
    assert sum(len(ids) for ids in documents[: starts["test"]]) >= counts["calibration"]


def test_text_of_ones_own_is_used_whole():
    counts = [WINDOW * BATCH_SIZE + 1, 3 * WINDOW, 3 * WINDOW]
    text = own_words(counts[:1], *counts[1:])
    assert [len(ids) for ids in corrected_splits(text, "own", sizes()).splits.values()] == counts
    assert sizes().names("own") == ("own",)


def test_too_little_text_is_an_error_that_names_split_and_length():
    with pytest.raises(UserError, match="test has 9 characters where 65 are needed"):
        corrected_splits(own_words([300], 300, 9), "own", sizes())
    short = StudyText("sotu", "made up", [Document("a", "a" * 30_000)], [Document("b", "b" * 3_000)])
    with pytest.raises(UserError, match="made up: calibration has 3000 characters where 5000 are needed"):
        corrected_splits(short, "20k", sizes())


def test_characters_know_their_documents():
    held_out = [Document("c", "x" * 3000), Document("d", "y" * 4000), Document("e", "z" * 6000)]
    train = [Document("a", "a" * 15_000), Document("b", "b" * 9000)]
    text = StudyText("wikitext", "made up", train, held_out)
    ids, data = document_ids(text, "20k", sizes()), corrected_splits(text, "20k", sizes())
    assert {split: len(numbers) for split, numbers in ids.items()} == sizes().corrected["20k"]
    for split, letters in (("train", "ab"), ("calibration", "xy"), ("test", "z")):
        for number, letter in enumerate(letters):
            assert data.splits[split][ids[split] == number].unique().tolist() == [ord(letter) - 32]
    assert not set(ids["test"].tolist()) - {0}


def test_documents_of_text_of_ones_own_are_whole():
    ids = document_ids(own_words([400, 500], 300, 200), "own", sizes())
    assert torch.bincount(ids["train"]).tolist() == [400, 500]
    assert [len(ids[split]) for split in ("calibration", "test")] == [300, 200]


def test_a_shorter_pangram_has_the_same_symbols():
    short = sizes().model_copy(update={"pangram": {"train": 1_025, "validation": 1_025}})
    data = published_1b(short)
    assert data.symbols == published_1b(sizes()).symbols and len(data.windows("train")[0]) == BATCH_SIZE
    odd = replace(data, splits={"train": data.splits["train"][: 20 * WINDOW]})
    assert len(odd.windows("train")[0]) % BATCH_SIZE == 0  # whole batches alone, as published
