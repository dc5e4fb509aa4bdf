"""How many bytes of text each token stands for: what turns nats per token into bits per byte."""

from __future__ import annotations

import json
import math
import re

import numpy as np
from tokenizers import Tokenizer

from offramp.corpus.tokenizer import END, UNKNOWN

BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""A byte by its number, as SentencePiece vocabularies have it."""


def token_bytes(tokenizer: Tokenizer, kind: str) -> np.ndarray:
    """How many UTF-8 bytes of text every token of the vocabulary stands for, (V,) float64.

    Special tokens stand for no text: 0. NaN where the number cannot be known: of ``<unk>``, and of every
    token of lowercased words (kind ``word``).
    """
    entries = tokenizer.get_vocab(with_added_tokens=True)
    added = {token.content: token.special for token in tokenizer.get_added_tokens_decoder().values()}
    special = {content for content, is_special in added.items() if is_special} | {END}
    by_byte = "ByteLevel" in json.dumps(json.loads(tokenizer.to_str()).get("decoder"))
    out = np.zeros(max(entries.values()) + 1)
    for entry, id in entries.items():
        if kind == "word" or entry == UNKNOWN:
            out[id] = math.nan
        elif entry in special:
            out[id] = 0
        elif by_byte:  # a character of the entry is one byte, but for added tokens, which are written as text
            out[id] = len(entry.encode() if entry in added else entry)
        else:
            out[id] = 1 if BYTE.fullmatch(entry) else len(entry.replace("▁", " ").encode())
    return out


def bits_per_byte(nats: float, num_bytes: float) -> float | None:
    """Bits per byte of a text whose tokens lose ``nats`` in sum; None where its bytes are 0 or NaN."""
    return nats / math.log(2) / num_bytes if num_bytes > 0 else None
