"""Hugging Face datasets: a real local dataset folder through the real library, without network."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pandas as pd
import pytest

from offramp.artifacts.artifact import create_artifact
from offramp.corpus.fingerprint import text_fingerprint
from offramp.corpus.hub import loaded_revision
from offramp.errors import UserError
from tests.corpus.conftest import corpus

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


def write_rows(file: Path, texts: list[str]) -> Path:
    file.parent.mkdir(exist_ok=True)
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return file


MANY = [f"row {number} of the union" for number in range(10)]


def test_a_train_split_alone_is_split_here(make, tmp_path):
    """By document, as files are: corpus.calibration_fraction, corpus.test_fraction, corpus.split_seed."""
    write_rows(tmp_path / "rows/train.jsonl", MANY)
    counts = make(kind="word", window=2, source="hub", hub_name="rows").meta["splits"]
    assert {split: count["documents"] for split, count in counts.items()} == {
        "train": 6,
        "calibration": 2,
        "test": 2,
    }


def test_a_file_of_rows_is_a_dataset_too(make, tmp_path):
    write_rows(tmp_path / "rows.jsonl", MANY)
    pd.DataFrame({"text": MANY}).to_csv(tmp_path / "rows.csv")
    pd.DataFrame({"text": MANY}).to_csv(tmp_path / "rows.tsv", sep="\t")
    digests = {
        make(kind="word", window=2, out=f"data {name}", source="hub", hub_name=f"rows.{name}").digest
        for name in ("jsonl", "csv", "tsv")
    }
    assert len(digests) == 1


def test_what_save_to_disk_wrote_is_read(dataset, make, tmp_path):
    import datasets

    one = datasets.Dataset.from_dict({"text": MANY})
    one.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=one, validation=one, test=one).save_to_disk(tmp_path / "three")
    for name, documents in (("one", 6), ("three", 10)):
        data = make(kind="word", window=2, out=name + " data", source="hub", hub_name=name)
        assert data.meta["splits"]["train"]["documents"] == documents


def test_rows_given_as_files_of_text_are_sent_where_they_are_read(make, tmp_path):
    write_rows(tmp_path / "rows.jsonl", MANY)
    remedy = "set corpus.source: hub, corpus.hub_name: rows.jsonl and corpus.hub_column"
    with pytest.raises(UserError, match=f"corpus.paths: rows.jsonl holds rows, whose syntax .*; {remedy}"):
        make(paths=["rows.jsonl"])


def test_half_a_character_is_named_as_such(make, tmp_path):
    write_rows(tmp_path / "rows/train.jsonl", [*MANY, "half \ud83d"])
    with pytest.raises(
        UserError, match=r"'rows' cannot be loaded: .*surrogate.*row.*half a character.*correct"
    ):
        make(source="hub", hub_name="rows")


def test_a_zero_character_in_a_row_is_named_by_row_and_place(make, tmp_path):
    write_rows(tmp_path / "rows/train.jsonl", [*MANY, "zero \0 here"])
    with pytest.raises(UserError, match=r"row 10 of split train has a zero character \(NUL\) at character 5"):
        make(source="hub", hub_name="rows")


def test_other_splits_are_no_reason_to_learn_the_syntax_of_rows(dataset, make):
    (dataset / "validation.parquet").unlink()
    with pytest.raises(UserError, match="or one with train alone") as caught:
        make(source="hub", hub_name="wiki")
    assert "files" not in str(caught.value)


@pytest.mark.parametrize("name", ["rows", "rows/train.jsonl"])
def test_rewritten_rows_change_the_fingerprint_and_the_tokens(name, make, tmp_path):
    file = write_rows(tmp_path / "rows/train.jsonl", MANY)
    settings = {"source": "hub", "hub_name": name}
    first = text_fingerprint(corpus(**settings), tmp_path), make(window=2, out="one", **settings)
    assert first[0] == text_fingerprint(corpus(**settings), tmp_path)
    write_rows(file, [text.replace("union", "onion") for text in MANY])
    second = text_fingerprint(corpus(**settings), tmp_path), make(window=2, out="two", **settings)
    assert first[0] != second[0] and first[1].digest != second[1].digest


class Hub(BaseHTTPRequestHandler):
    """What the hub answers when it is asked which commit a name stands for."""

    commits: ClassVar = {"main": "a" * 40, "v1": "b" * 40}

    def do_GET(self):
        commit = self.commits[self.path.partition("/revision/")[2].partition("?")[0] or "main"]
        answer = json.dumps({"id": "nobody/rows", "sha": commit, "siblings": [], "tags": []}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    import huggingface_hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(
        huggingface_hub.hf_api, "ENDPOINT", f"http://127.0.0.1:{server.server_port}", raising=False
    )
    monkeypatch.setattr(
        huggingface_hub.constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}", raising=False
    )
    yield server
    server.shutdown()


def test_a_name_on_the_hub_is_fingerprinted_by_its_commit(hub, tmp_path):
    for name, commit in (("nobody/rows", "a" * 40), ("nobody/rows@v1", "b" * 40)):
        fingerprint = text_fingerprint(corpus(source="hub", hub_name=name), tmp_path)
        assert fingerprint == {"hub": name, "config": None, "revision": commit}


def test_without_the_hub_the_commit_is_that_of_the_corpus_that_is_there(tmp_path):
    """So that a project whose dataset is cached does not run again when the network goes."""
    settings = corpus(source="hub", hub_name="nobody/rows")
    assert text_fingerprint(settings, tmp_path)["revision"] is None
    params = {"corpus": settings.model_dump()}
    with create_artifact(tmp_path / "data", "data", params, {}) as out:
        out.meta["hub_revision"] = "c" * 40
    assert text_fingerprint(settings, tmp_path)["revision"] == "c" * 40
    other = corpus(source="hub", hub_name="nobody/others")
    assert text_fingerprint(other, tmp_path)["revision"] is None


def test_the_commit_of_what_was_loaded_is_read_off_its_sources():
    import datasets

    rows = datasets.Dataset.from_dict({"text": MANY})
    assert loaded_revision({"train": rows}) is None
    rows.info.download_checksums = {f"hf://datasets/nobody/rows@{'d' * 40}/train.parquet": {}}
    assert loaded_revision({"train": rows}) == "d" * 40
