"""Windows against plain slices of the stream, for any sizes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from offramp.artifacts.artifact import create_artifact, open_artifact
from offramp.corpus.sources import Piece
from offramp.corpus.split import SPLITS
from offramp.corpus.store import write_streams
from offramp.corpus.windows import TokenWindows
from offramp.errors import UserError


def data_artifact(path: Path, lengths: list[int], window: int, dtype: str = "<u2"):
    """Every split has documents of these lengths (end token included); the n-th token has id n % 1000 + 1."""
    pieces = [Piece(index, str(index), "x" * (length - 1), None) for index, length in enumerate(lengths * 3)]
    splits = np.repeat(np.arange(3), len(lengths))
    counter = iter(range(10**9))

    def encode(text: str) -> np.ndarray:
        return np.array([next(counter) % 1000 + 1 for _ in text], dtype=np.uint32)

    with create_artifact(path, "data", {}, {}) as writer:
        write_streams(writer.path, pieces, splits, encode, np.dtype(dtype), end_id=0, unknown_id=None)
        writer.meta = {"dtype": np.dtype(dtype).name, "vocab_size": 1001, "window": window}
    return open_artifact(path, "data")


@settings(max_examples=50, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 30), min_size=1, max_size=12),
    window=st.integers(1, 12),
    dtype=st.sampled_from(["<u2", "<u4"]),
    choose=st.randoms(use_true_random=False),
)
def test_windows_equal_plain_slices(lengths, window, dtype, choose):
    assume(sum(lengths) > window)  # one window at least, which TokenWindows demands
    with tempfile.TemporaryDirectory() as folder:
        data = data_artifact(Path(folder) / "data", lengths, window, dtype)
        for split in SPLITS:
            ids = np.fromfile(data.file(f"{split}.bin"), dtype=dtype)
            document_of = np.repeat(np.arange(len(lengths)), lengths)
            windows = TokenWindows(data, split)
            assert len(ids) == len(document_of)
            assert len(windows) == (sum(lengths) - 1) // window
            indices = [choose.randrange(len(windows)) for _ in range(5)]
            inputs, targets = windows.batch(indices)
            documents = windows.documents(indices)
            assert inputs.shape == targets.shape == documents.shape == (len(indices), window)
            for row, index in enumerate(indices):
                place = slice(index * window, index * window + window)
                after = slice(place.start + 1, place.stop + 1)
                assert inputs[row].tolist() == ids[place].tolist()
                assert targets[row].tolist() == ids[after].tolist()
                assert documents[row].tolist() == document_of[place].tolist()


def test_indices_outside_are_refused(tmp_path):
    windows = TokenWindows(data_artifact(tmp_path / "data", [10, 11], 5), "train")
    assert len(windows) == 4
    for index in (-1, 4):
        with pytest.raises(IndexError, match="from 0 to 3"):
            windows.batch([index])
    with pytest.raises(ValueError, match="valid"):
        TokenWindows(open_artifact(tmp_path / "data", "data"), "valid")


def test_a_damaged_artifact_is_refused(tmp_path):
    data = data_artifact(tmp_path / "data", [10, 11], 5)
    file = data.file("test.bin")
    content = file.read_bytes()
    file.write_bytes(content[:-1])
    with pytest.raises(UserError, match=r"test\.bin has 41 bytes, its manifest says 42"):
        open_artifact(data.path, "data")
    file.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    with pytest.raises(UserError, match=r"test\.bin was changed"):
        open_artifact(data.path, "data")


def test_many_documents_take_several_row_groups(tmp_path):
    data = data_artifact(tmp_path / "data", [2] * 7000, 100)
    table = pd.read_parquet(data.file("documents.parquet"))
    assert table["split"].value_counts().to_dict() == dict.fromkeys(SPLITS, 7000)
    documents = TokenWindows(data, "test").documents([100])
    assert documents[0].tolist() == np.repeat(np.arange(5000, 5050), 2).tolist()
