"""Parameters of a small corpus of local files, and the stage's library call on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offramp.artifacts.artifact import Artifact
from offramp.corpus.prepare import prepare
from offramp.params import Corpus, TokenizerParams

WORDS = ["the", "union", "of", "states", "shall", "endure", "while", "congress", "café", "中文", "naïve"]


def corpus(**changes: Any) -> Corpus:
    values = {
        "source": "files",
        "hub_name": None,
        "hub_config": None,
        "hub_column": "text",
        "paths": ["text"],
        "document_pattern": None,
        "document_characters": None,
        "calibration_fraction": 0.2,
        "test_fraction": 0.2,
        "split_seed": 0,
    }
    return Corpus(**values | changes)


def tokenizer_params(kind: str = "bpe", vocab_size: int = 300, min_count: int = 1) -> TokenizerParams:
    return TokenizerParams(kind=kind, vocab_size=vocab_size, min_count=min_count)


def sentences(count: int, seed: int = 0) -> str:
    rng = np.random.default_rng(seed)
    return "".join(" ".join(rng.choice(WORDS, 9)).capitalize() + ".\n" for _ in range(count))


@pytest.fixture
def write_texts(tmp_path: Path):
    """Write documents as files under text/: in sorted order the order given."""

    def write(texts: list[str]) -> None:
        folder = tmp_path / "text"
        folder.mkdir(exist_ok=True)
        for index, text in enumerate(texts):
            (folder / f"{index:03}.txt").write_bytes(text.encode())

    return write


@pytest.fixture
def make(tmp_path: Path):
    """Run ``prepare`` into data/ under tmp_path."""

    def run(kind="bpe", window=8, out="data", tokenizer=None, **changes: Any) -> Artifact:
        params = tokenizer or tokenizer_params(kind)
        return prepare(corpus(**changes), params, window, tmp_path / out, {"window": window}, tmp_path)

    return run
