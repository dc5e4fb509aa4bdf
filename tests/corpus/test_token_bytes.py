"""Bytes of tokens add up to the bytes of their text."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from offramp.corpus.token_bytes import bits_per_byte, token_bytes
from offramp.corpus.tokenizer import Encoder, train_tokenizer
from offramp.params import TokenizerParams
from tests.fixtures.checkpoints import make_tokenizer

TEXTS = [
    "The café is näive, and the state of the Union is strong.\n\n  Twice — 日本.",
    "and so on, and so forth",
]
SMOLLM2 = Path(__file__).resolve().parents[2] / "build/smollm2/tokenizer.json"
BPE = train_tokenizer(TokenizerParams(kind="bpe", vocab_size=300, min_count=1), TEXTS)
CHAR = train_tokenizer(TokenizerParams(kind="char", vocab_size=300, min_count=1), TEXTS)


@given(st.text())
def test_bpe_tokens_add_up_for_any_text(text):
    assert token_bytes(BPE, "bpe")[Encoder(BPE, "bpe")(text)].sum() == len(text.encode("utf-8", "replace"))


def test_characters_add_up_and_unknown_ones_are_not_guessed():
    sizes = token_bytes(CHAR, "char")
    assert sizes[Encoder(CHAR, "char")(TEXTS[0])].sum() == len(TEXTS[0].encode())
    assert math.isnan(sizes[Encoder(CHAR, "char")("Ω")].sum())


def test_lowercased_words_have_no_bytes_and_no_bits_per_byte():
    words = train_tokenizer(TokenizerParams(kind="word", vocab_size=300, min_count=1), TEXTS)
    assert bits_per_byte(3.0, token_bytes(words, "word")[Encoder(words, "word")("and so on,")].sum()) is None


def test_added_tokens_are_written_as_text_not_as_bytes():
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["naïve — 日本"])
    ids = Encoder(tokenizer, "pretrained")("the naïve — 日本")
    assert tokenizer.id_to_token(ids[-1]) == "naïve — 日本"
    assert token_bytes(tokenizer, "pretrained")[ids].sum() == len("the naïve — 日本".encode())


@pytest.mark.skipif(not SMOLLM2.is_file(), reason="build/smollm2 is not there; `make smollm2` makes it")
def test_tokens_of_a_checkpoint_add_up():
    tokenizer = Tokenizer.from_file(str(SMOLLM2))
    assert token_bytes(tokenizer, "pretrained")[Encoder(tokenizer, "pretrained")(TEXTS[0])].sum() == len(
        TEXTS[0].encode()
    )


def test_bits_per_byte_is_log_two_based():
    assert bits_per_byte(8 * math.log(2), 4) == pytest.approx(2.0)
