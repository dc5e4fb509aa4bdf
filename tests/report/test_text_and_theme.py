"""Coloured text: the right exit on the right word. Colours: readable, and distinct without red or green."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from offramp.corpus.tokenizer import Encoder, train_tokenizer
from offramp.params import TokenizerParams
from offramp.report.text import Passage, passages, visible
from offramp.report.theme import INK, PAPER, TINT, exit_colours, palette
from tests.fixtures.report_run import TEXT

# Machado, Oliveira and Fernandes 2009, full deuteranopia and protanopia, on linear RGB
DEFICIENCIES = {
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]
    ],
    "protanopia": [
        [0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]
    ],
}  # fmt: skip


def routed(ids: list[int], documents: list[int]) -> list[dict[str, Any]]:
    """Rows of a routed table over a token stream; exits alternate, and every prediction is the target."""
    return [
        {
            "document": documents[row],
            "token": token,
            "target": target,
            "exit": row % 2,
            "confidence": math.nan if row % 2 else 0.9,
            "loss": row / 10,
            "argmax": target,
        }
        for row, (token, target) in enumerate(pairwise(ids))
    ]


def joined(passage: Passage) -> str:
    return passage.opening + "".join(token.text for token in passage.tokens)


@pytest.mark.parametrize("kind", ["bpe", "word", "char"])
def test_passages_read_as_their_documents(kind):
    texts = ["We have caf\u00e9s,\nand more cars.", "The union is strong."]
    tokenizer = train_tokenizer(TokenizerParams(kind=kind, vocab_size=400, min_count=1), texts)
    encoded = [[*Encoder(tokenizer, kind)(text).tolist(), 0] for text in texts]
    documents = [4] * len(encoded[0]) + [9] * len(encoded[1])
    table = routed(encoded[0] + encoded[1], documents)
    out = passages(table, tokenizer, kind, end_id=0, limit=len(table))
    wanted = [" ".join(text.lower().split()) for text in texts] if kind == "word" else texts
    assert [(passage.document, joined(passage)) for passage in out] == list(zip((4, 9), wanted))
    # row i predicts token i + 1, so the second token shown is the target of row 1
    assert [token.exit for token in out[0].tokens[:3]] == [0, 1, 0]
    assert [token.loss for token in out[0].tokens[:3]] == ["0.00", "0.10", "0.20"]
    assert [token.confidence for token in out[0].tokens[:2]] == ["0.90", ""]


def test_only_as_many_tokens_as_asked_for():
    tokenizer = train_tokenizer(TokenizerParams(kind="char", vocab_size=300, min_count=1), [TEXT])
    table = routed(Encoder(tokenizer, "char")(TEXT).tolist(), [0] * len(TEXT))
    (passage,) = passages(table[:21], tokenizer, "char", end_id=0, limit=20)
    assert joined(passage) == TEXT[:21]
    assert passages(table[:0], tokenizer, "char", end_id=0, limit=20) == []


def rgb(colour: str) -> np.ndarray:
    return np.frombuffer(bytes.fromhex(colour[1:]), dtype=np.uint8) / 255


def linear(srgb: np.ndarray) -> np.ndarray:
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def contrast(a: np.ndarray, b: np.ndarray) -> float:
    """WCAG contrast ratio of two sRGB colours."""
    high, low = sorted((linear(colour) @ [0.2126, 0.7152, 0.0722] for colour in (a, b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("exits", [2, 3, 4, 6])
def test_text_on_every_exit_colour_is_readable(scheme, exits):
    paper, ink = rgb(getattr(PAPER, scheme)), rgb(getattr(INK, scheme))
    for colour in exit_colours(exits):
        behind = TINT * rgb(getattr(colour, scheme)) + (1 - TINT) * paper
        assert contrast(ink, behind) >= 7


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("exits", [2, 3, 4])
def test_neighbouring_exits_differ_for_colour_blind_readers(scheme, exits, deficiency):
    seen = [
        np.clip(DEFICIENCIES[deficiency] @ linear(rgb(getattr(colour, scheme))), 0, 1)
        for colour in exit_colours(exits)
    ]
    perceived = [np.cbrt(colour) for colour in seen]  # lightness-like: equal steps look roughly equal
    for a, b in pairwise(perceived):
        assert np.linalg.norm(a - b) > 0.15


@pytest.mark.parametrize("exits", [1, 2, 3, 12])
def test_colours_have_names_and_drawing_values_of_their_own(exits):
    colours = palette(exits)
    assert len({colour.name for colour in colours}) == len(colours)
    assert len({colour.light for colour in colours}) == len(colours)


@pytest.mark.parametrize("kind", ["bpe", "char"])
def test_control_characters_are_shown_as_signs(kind):
    """A raw escape or zero byte is no HTML, and what turns the direction of text would turn the page's."""
    raw = "log \x1b[31mred\x1b[0m\x00 end\r\nשל \u202eabc\u202c <script>\tnew line\n"
    shown = "log ␛[31mred␛[0m␀ end␍\nשל [U+202E]abc[U+202C] <script>\tnew line\n"
    tokenizer = train_tokenizer(TokenizerParams(kind=kind, vocab_size=400, min_count=1), [raw])
    ids = [*Encoder(tokenizer, kind)(raw).tolist(), 0]
    (passage,) = passages(routed(ids, [0] * len(ids)), tokenizer, kind, end_id=0, limit=len(ids))
    assert joined(passage) == shown == visible(raw)
    assert all(token.prediction == token.text for token in passage.tokens)
