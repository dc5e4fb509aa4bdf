"""Tokenizers as ``tokenizer.json``: byte-level BPE, lowercased words, characters, or a checkpoint's own.

``<eos>`` is token 0 and ends every document; kinds word and char have ``<unk>`` as token 1. In texts of words
a literal ``<unk>`` or ``<eos>`` keeps that meaning, as prepared corpora use them; in bpe and char both are
plain text, as are the special tokens of a checkpoint.
"""

from __future__ import annotations

import codecs
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from offramp.artifacts.artifact import Artifact
from offramp.artifacts.files import readable
from offramp.errors import UserError

if TYPE_CHECKING:
    from offramp.params import TokenizerParams

FILE = "tokenizer.json"
END, UNKNOWN = "<eos>", "<unk>"

CHUNK = re.compile(r"(?:\s*+[^ \n]++)+?(?<=\S)|[\s\S]+")
"""A word with the whitespace before it. It ends between a non-space and a space or newline, which no token
spans: the tokens of the chunks are the tokens of the text."""

CACHED_CHUNKS = 2**17
"""Chunks whose tokens an encoder remembers before it forgets all of them."""


def train_tokenizer(params: TokenizerParams, texts: Iterable[str]) -> Tokenizer:
    """A tokenizer of kind bpe, word or char whose vocabulary comes from ``texts`` alone.

    The same texts give the same file. UserError if no word or character occurs ``min_count`` times.
    """
    if params.kind == "bpe":
        return _train_bpe(params.vocab_size, texts)
    tokenizer = Tokenizer(models.WordLevel({}, unk_token=UNKNOWN))
    if params.kind == "word":
        tokenizer.normalizer = normalizers.Lowercase()
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        counts = _count_words(tokenizer, texts)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        tokenizer.decoder = decoders.Fuse()
        counts = Counter()
        for text in texts:
            counts.update(text)
    for special in (END, UNKNOWN):
        counts.pop(special, None)
    kept = [entry for entry, count in counts.items() if count >= params.min_count]
    if not kept:
        unit = f"no {params.kind} of the train split occurs that often"
        raise UserError(f"tokenizer.min_count = {params.min_count}: {unit}; lower it")
    kept.sort(key=lambda entry: (-counts[entry], entry))
    vocabulary = [END, UNKNOWN, *kept[: params.vocab_size - 2]]
    tokenizer.model = models.WordLevel({entry: id for id, entry in enumerate(vocabulary)}, unk_token=UNKNOWN)
    tokenizer.add_special_tokens([END])
    return tokenizer


def open_tokenizer(data: Artifact) -> Tokenizer:
    """The tokenizer of a data artifact, whose kind ``data.meta["kind"]`` says."""
    with readable(data.file(FILE)) as file:
        return Tokenizer.from_file(str(file))


class Encoder:
    """What turns text into token ids: ``encoder(text)`` is uint32 (N,).

    It gives the tokens that the tokenizers library gives, several times faster: words repeat, so their tokens
    are remembered, and characters are a table look-up. A checkpoint's tokenizer may join what is on both
    sides of a space or newline, so it is given the text as a whole.
    """

    def __init__(self, tokenizer: Tokenizer, kind: str):
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        # "<eos>" inside a text does not end it; tokenizer.json does not keep this setting
        self._tokenizer.encode_special_tokens = True
        self._chunks: dict[str, list[int]] = {}
        self._whole = kind == "pretrained"
        self._by_codepoint = _codepoint_table(tokenizer) if kind == "char" else None

    def __call__(self, text: str) -> np.ndarray:
        if self._by_codepoint is not None:
            return self._by_codepoint[np.frombuffer(text.encode("utf-32-le"), dtype="<u4")]
        if self._whole:
            return np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.uint32)
        chunks = CHUNK.findall(text)
        if len(self._chunks) > CACHED_CHUNKS:
            self._chunks.clear()
        if new := [chunk for chunk in dict.fromkeys(chunks) if chunk not in self._chunks]:
            encodings = self._tokenizer.encode_batch_fast(new, add_special_tokens=False)
            self._chunks.update((chunk, encoding.ids) for chunk, encoding in zip(new, encodings))
        ids = chain.from_iterable(map(self._chunks.__getitem__, chunks))
        return np.fromiter(ids, dtype=np.uint32)


def token_texts(tokenizer: Tokenizer, kind: str, ids: Sequence[int]) -> list[str]:
    """The text that each of the tokens ``ids`` shows as; joined, they read as the text.

    Kinds bpe and pretrained: a character made of several tokens belongs to the last of them, the others show
    nothing; bytes that never become a character, as where ``ids`` begin inside one, show as U+FFFD. Kind
    word: every token but the first begins with the space before it. ValueError for an id that is not in the
    vocabulary.
    """
    if kind == "pretrained":
        return _pretrained_texts(tokenizer, ids)
    tokens = [_token(tokenizer, int(id)) for id in ids]
    if kind == "word":
        return [" " * (place > 0) + token for place, token in enumerate(tokens)]
    if kind == "char":
        return tokens
    byte_of = {character: byte for byte, character in enumerate(_byte_characters())}
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    last = len(tokens) - 1
    return [
        decoder.decode(bytes(byte_of[character] for character in token), final=place == last)
        for place, token in enumerate(tokens)
    ]


def _token(tokenizer: Tokenizer, id: int) -> str:
    token = tokenizer.id_to_token(id)
    if token is None:
        raise ValueError(f"token {id} is not in the tokenizer's vocabulary of {tokenizer.get_vocab_size()}")
    return token


def _pretrained_texts(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """The texts of tokens, each decoded after the one before it: alone, some lose their leading space."""
    texts, context, done = [], 0, 0
    for end in range(1, len(ids) + 1):
        before, now = (tokenizer.decode(ids[context:stop], skip_special_tokens=False) for stop in (done, end))
        # no character has more than four bytes
        inside = now.endswith("\ufffd") and end - done < 4 and end < len(ids)
        texts.append("" if inside else now[len(before) :])
        if not inside:
            context, done = done, end
    return texts


def _train_bpe(vocab_size: int, texts: Iterable[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    # lines are split first so that it makes no difference at which line ends a text is cut into pieces
    lines = pre_tokenizers.Split("\n", "merged_with_previous")
    parts = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([lines, parts])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _count_words(tokenizer: Tokenizer, texts: Iterable[str]) -> Counter[str]:
    """Words as the tokenizer's normaliser and pre-tokenizer cut them, counted by chunk for speed."""
    words: Counter[str] = Counter()
    chunks: Counter[str] = Counter()

    def fold() -> None:
        for chunk, count in chunks.items():
            normal = tokenizer.normalizer.normalize_str(chunk)
            for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal):
                words[word] += count
        chunks.clear()

    for text in texts:
        chunks.update(CHUNK.findall(text))
        if len(chunks) > CACHED_CHUNKS:
            fold()
    fold()
    return words


def _codepoint_table(tokenizer: Tokenizer) -> np.ndarray:
    """Token id of every Unicode code point, from a char tokenizer's vocabulary."""
    table = np.full(0x110000, tokenizer.token_to_id(UNKNOWN), dtype=np.uint32)
    for entry, id in tokenizer.get_vocab().items():
        if entry not in (END, UNKNOWN):
            table[ord(entry)] = id
    return table


def _byte_characters() -> list[str]:
    """The character that byte-level BPE writes for each byte: itself if printable, else one past U+00FF."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    substitutes = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(substitutes)) for byte in range(256)]
