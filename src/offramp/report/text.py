"""Test text with the exit of every token: what the page colours.

A row of the routed table says where the model left while reading ``token``, and so which exit predicted
``target``. The page shows targets: each word in the colour of the exit that predicted it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Tokenizer

from offramp.corpus.tokenizer import token_texts

NUMBERED = (*range(0x80, 0xA0), 0x61C, 0x200E, 0x200F, *range(0x2028, 0x202F), *range(0x2066, 0x206A))
"""Later control characters, line separators, and what turns the direction of text."""
SIGNS: dict[int, int | str] = {
    **{code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"},
    0x7F: 0x2421,
    **{code: f"[U+{code:04X}]" for code in NUMBERED},
}
"""What control characters are shown as: the pictures of Unicode for them, or their number where it has none.

Raw ones would move a terminal's cursor, turn the direction of what follows, or make a page no valid one.
"""


def visible(text: str) -> str:
    """The text with signs for its control characters; tabs and line ends stay."""
    return text.translate(SIGNS)


@dataclass(frozen=True)
class Token:
    """A predicted token with what the page tells of it; numbers as they are shown."""

    text: str
    exit: int
    loss: str
    confidence: str
    """Empty where the exit needs none, as at full depth."""
    prediction: str


@dataclass
class Passage:
    """Consecutive tokens of one test document; ``opening`` is text that nothing predicted."""

    document: int
    opening: str = ""
    tokens: list[Token] = field(default_factory=list)


def passages(
    rows: Sequence[Mapping[str, Any]], tokenizer: Tokenizer, kind: str, end_id: int, limit: int
) -> list[Passage]:
    """The first ``limit`` targets of ``rows`` (see Measurements.tokens) by document, without end tokens."""
    if not rows:
        return []
    shown = rows[:limit]
    opening, *texts = token_texts(tokenizer, kind, [shown[0]["token"], *(row["target"] for row in shown)])
    predictions = {
        token: visible(token_texts(tokenizer, kind, [token])[0]) for token in {row["argmax"] for row in shown}
    }
    # a target is read at the next row, whose document it therefore belongs to
    documents = [row["document"] for row in rows]
    documents = documents[1 : len(shown) + 1] + documents[-1:]
    out = [Passage(rows[0]["document"], visible(opening))]
    for row, text, document in zip(shown, texts, documents):
        if document != out[-1].document:
            out.append(Passage(document))
        if row["target"] != end_id:
            if not out[-1].tokens and not out[-1].opening:
                text = text.lstrip(" ")  # the word tokenizer's space belongs between words
            confidence = "" if math.isnan(row["confidence"]) else f"{row['confidence']:.2f}"
            prediction = predictions[row["argmax"]]
            token = Token(visible(text), row["exit"], f"{row['loss']:.2f}", confidence, prediction)
            out[-1].tokens.append(token)
    return [passage for passage in out if passage.tokens]
