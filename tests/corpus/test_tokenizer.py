"""Vocabularies, the fast encoder against the library's own, and what tokens show as."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from offramp.corpus.tokenizer import Encoder, token_texts, train_tokenizer
from offramp.errors import UserError
from tests.corpus.conftest import sentences, tokenizer_params
from tests.fixtures.checkpoints import TEXT, make_tokenizer

KINDS = ("bpe", "word", "char")
TEXTS = [sentences(60), "Ünïcode 日本語 🙂\n\n  two  spaces\tand\ttabs\n", "it's <eos> and <unk>\n"]

awkward = st.sampled_from("ab S'!1\n\t\x1c\x85\u00a0\u2003\u3000é日🙂İΣ")
texts = st.text(awkward | st.characters(codec="utf-8"), max_size=60)


@cache
def trained(kind: str) -> Tokenizer:
    return train_tokenizer(tokenizer_params(kind, 400), TEXTS)


def library_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    tokenizer = Tokenizer.from_str(tokenizer.to_str())
    tokenizer.encode_special_tokens = True
    return tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("kind", KINDS)
@given(lines=st.lists(texts, max_size=5))
@example(lines=["a\t\t  b", "!\x1c b\x1c", "\n\n", "<eos> it's"])
def test_encoder_is_the_library_wherever_lines_are_cut(kind, lines):
    tokenizer, text = trained(kind), "\n".join(lines)
    encoder = Encoder(tokenizer, kind)
    expected = library_ids(tokenizer, text)
    assert encoder(text).tolist() == expected
    assert encoder(text).tolist() == expected  # from memory
    pieces = [line + "\n" for line in lines[:-1]] + lines[-1:]
    assert np.concatenate([encoder(piece) for piece in pieces] or [[]]).tolist() == expected


def test_memory_of_words_is_bounded(monkeypatch):
    monkeypatch.setattr("offramp.corpus.tokenizer.CACHED_CHUNKS", 100)
    lines = [" ".join(f"w{line}x{place}" for place in range(30)) + "\n" for line in range(50)]
    tokenizer = train_tokenizer(tokenizer_params("word", 2000), lines)
    assert tokenizer.get_vocab_size() == 2 + 50 * 30
    encoder = Encoder(tokenizer, "word")
    for line in lines:
        assert encoder(line).tolist() == library_ids(tokenizer, line)
        assert len(encoder._chunks) <= 100 + 31


@given(text=texts)
def test_bpe_loses_nothing(text):
    tokenizer = trained("bpe")
    ids = Encoder(tokenizer, "bpe")(text).tolist()
    assert tokenizer.decode(ids) == text
    assert "".join(token_texts(tokenizer, "bpe", ids)) == text


@pytest.mark.parametrize("kind", KINDS)
def test_special_tokens_come_first(kind):
    tokenizer = trained(kind)
    assert tokenizer.id_to_token(0) == "<eos>"
    assert tokenizer.token_to_id("<unk>") == (None if kind == "bpe" else 1)
    vocabulary = tokenizer.get_vocab()
    assert sorted(vocabulary.values()) == list(range(tokenizer.get_vocab_size()))
    assert tokenizer.get_vocab_size() <= 400


@pytest.mark.parametrize("kind", KINDS)
def test_same_texts_same_tokenizer_however_cut(kind):
    lines = (line for text in TEXTS for line in text.splitlines(True))
    again = train_tokenizer(tokenizer_params(kind, 400), lines)
    assert again.to_str() == trained(kind).to_str()


def test_word_counts_and_cap():
    text = ["b B a\n", "a C <unk> <unk> <unk>\n", "a d"]
    twice = train_tokenizer(tokenizer_params("word", 260, min_count=2), text)
    assert twice.get_vocab() == {"<eos>": 0, "<unk>": 1, "a": 2, "b": 3}
    assert Encoder(twice, "word")("A c <unk> <eos>\nb").tolist() == [2, 1, 1, 0, 3]
    many = train_tokenizer(tokenizer_params("word", 260), [f"word{number:03}" for number in range(500)])
    assert many.get_vocab_size() == 260
    assert many.token_to_id("word257") == 259  # equal counts: in alphabetical order


def test_char_keeps_newlines_and_case():
    tokenizer = train_tokenizer(tokenizer_params("char", min_count=2), ["Aab\n", "Aab\nx"])
    assert tokenizer.get_vocab() == {"<eos>": 0, "<unk>": 1, "\n": 2, "A": 3, "a": 4, "b": 5}
    assert Encoder(tokenizer, "char")("bA\nx🙂").tolist() == [5, 3, 2, 1, 1]
    assert tokenizer.decode([5, 3, 2, 0]) == "bA\n"


@pytest.mark.parametrize("kind", ["word", "char"])
def test_nothing_occurs_often_enough(kind):
    with pytest.raises(UserError, match=f"tokenizer.min_count = 50: no {kind} of the train split "):
        train_tokenizer(tokenizer_params(kind, min_count=50), ["a few words"])


def test_texts_of_tokens_inside_characters():
    tokenizer = train_tokenizer(tokenizer_params("bpe", 260), ["plain"])
    ids = Encoder(tokenizer, "bpe")("é🙂!").tolist()
    assert token_texts(tokenizer, "bpe", [*ids, 0]) == ["", "é", "", "", "", "🙂", "!", "<eos>"]
    assert token_texts(tokenizer, "bpe", ids[3:]) == ["\ufffd", "\ufffd", "\ufffd", "!"]
    assert token_texts(tokenizer, "bpe", ids[:1]) == ["\ufffd"]
    assert token_texts(tokenizer, "bpe", []) == []


def test_texts_of_words_and_characters():
    word, char = trained("word"), trained("char")
    ids = Encoder(word, "word")("The union\nshall xyzzy")
    assert token_texts(word, "word", ids) == ["the", " union", " shall", " <unk>"]
    assert token_texts(char, "char", Encoder(char, "char")("The\n")) == ["T", "h", "e", "\n"]


@settings(deadline=None)
@given(text=texts)
def test_a_checkpoints_tokenizer_is_asked_about_whole_texts_and_loses_nothing(text):
    tokenizer, text = make_pretrained(), TEXT[:99] + text
    ids = Encoder(tokenizer, "pretrained")(text).tolist()
    assert ids == library_ids(tokenizer, text)
    assert any("Ċ" in (entry := tokenizer.id_to_token(id)) and entry.strip("Ċ") for id in ids), (
        "no token spans a line end"
    )
    assert "".join(token_texts(tokenizer, "pretrained", ids)) == text


make_pretrained = cache(make_tokenizer)


def test_texts_of_a_checkpoints_tokens():
    ids = [make_pretrained().token_to_id(entry) for entry in ("Ã", "©", "!", "Ġ", "ð", "Ł")]
    assert token_texts(make_pretrained(), "pretrained", ids) == ["", "é", "!", " ", "", "\ufffd"]
    sentencepiece = Tokenizer(models.WordLevel({"▁the": 0, "▁un": 1, "ion": 2}, unk_token="ion"))
    sentencepiece.pre_tokenizer, sentencepiece.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    assert token_texts(sentencepiece, "pretrained", [0, 1, 2, 0]) == ["the", " un", "ion", " the"]
