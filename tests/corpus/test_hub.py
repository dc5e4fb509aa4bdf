"""Hugging Face datasets: a real local dataset folder through the real library, without network."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from offramp.errors import UserError

ROWS = {
    "train": [" = One = \n", "", " alpha beta gamma delta \n", " = Two = \n", "epsilon zeta eta theta", None],
    "validation": [" = Three = \n", " alpha beta \n", " = Four = \n", " beta alpha \n"],
    "test": [" = Five = \n", " gamma delta unseen \n"],
}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    import datasets
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "wiki"
    folder.mkdir()
    for split, rows in ROWS.items():
        table = pd.DataFrame({"text": pd.array(rows, dtype="string"), "year": range(len(rows))})
        table.to_parquet(folder / f"{split}.parquet")
    return folder


def test_own_splits_with_a_document_per_row(dataset, make):
    data = make(kind="word", window=2, source="hub", hub_name="wiki")
    splits = data.meta["splits"]
    documents = {split: counts["documents"] for split, counts in splits.items()}
    assert documents == {"train": 4, "calibration": 4, "test": 2}  # rows without text are none
    assert splits["train"]["unknown_rate"] == 0
    assert splits["test"]["unknown_rate"] == pytest.approx(2 / 6)  # five, unseen


def test_pattern_joins_rows_into_documents(dataset, make):
    data = make(kind="word", window=2, source="hub", hub_name="wiki", document_pattern="^ = [^=]+ = $")
    counts = {split: (counts["documents"], counts["tokens"]) for split, counts in data.meta["splits"].items()}
    assert counts == {"train": (2, 16), "calibration": (2, 12), "test": (1, 7)}
    table = pd.read_parquet(data.file("documents.parquet"))
    assert table["name"].tolist() == ["train", "train#2", "validation", "validation#2", "test"]


def test_text_folder(tmp_path, make):
    folder = tmp_path / "lines"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        (folder / f"{split}.txt").write_text(f"one two {split}\nthree four\n")
    data = make(kind="word", window=2, source="hub", hub_name="lines")
    assert {counts["documents"] for counts in data.meta["splits"].values()} == {2}


def test_missing_split(dataset, make):
    (dataset / "validation.parquet").unlink()
    with pytest.raises(UserError, match=r"'wiki' has the splits train, test but no validation"):
        make(source="hub", hub_name="wiki")


def test_missing_and_wrong_column(dataset, make):
    with pytest.raises(UserError, match=r"'body' is not in split train of 'wiki'; .*text, year$"):
        make(source="hub", hub_name="wiki", hub_column="body")
    with pytest.raises(UserError, match=r"corpus.hub_column = 'year' of 'wiki' does not hold text"):
        make(source="hub", hub_name="wiki", hub_column="year")


def test_too_few_documents_in_a_split(dataset, make):
    pd.DataFrame({"text": ["only one"], "year": [1]}).to_parquet(dataset / "validation.parquet")
    with pytest.raises(UserError, match=r"its split validation has 1 document\(s\) with text, at least 2"):
        make(source="hub", hub_name="wiki")


@pytest.mark.parametrize("name", ["nobody/no-such-dataset", "not a name", "broken"])
def test_what_cannot_be_loaded_is_one_line_with_a_remedy(name, make, tmp_path):
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train.parquet").write_bytes(b"not parquet")
    with pytest.raises(UserError, match="cannot be loaded") as caught:
        make(source="hub", hub_name=name)
    message = str(caught.value)
    assert f"corpus.hub_name = {name!r}" in message
    assert "corpus.source: files" in message
    assert "\n" not in message
    assert not (tmp_path / "data").exists()
