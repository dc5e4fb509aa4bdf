"""Texts of the studies: corpora with their held-out parts and digests, and files of one's own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from offramp.errors import UserError
from studies.common.text import FILES, PANGRAM, own_text, pangram_text, study_text, text_of


@pytest.fixture
def own_files(tmp_path) -> dict[str, Path]:
    """A file for every split."""
    paths = {split: tmp_path / f"{split}.txt" for split in ("train", "calibration", "test")}
    for split, path in paths.items():
        path.write_text(f"{split} of a text that says little.")
    return paths


def test_wikitext_is_cut_into_articles_and_its_record_has_no_machine_path(tmp_path, monkeypatch):
    for file, titles in ((FILES["train"], "ABC"), (FILES["calibration"], "DE")):
        articles = [f" \n = {title} = \n \n text of {title} \n = = Part = = \n more \n" for title in titles]
        (tmp_path / file).write_text("".join(articles))
    monkeypatch.setenv("WIKITEXT2", str(tmp_path))
    text = study_text("wikitext")
    assert [len(text.train), len(text.validation)] == [3, 2]  # " = = Part = = " begins no article
    assert text.train[1].text.startswith(" = B = \n")
    assert str(tmp_path) not in json.dumps(text.record()) + "".join(document.name for document in text.train)


def test_another_text_has_another_digest(tmp_path, monkeypatch):
    for file in FILES.values():
        (tmp_path / file).write_text(" = A = \n a text\n")
    monkeypatch.setenv("WIKITEXT2", str(tmp_path))
    before = study_text("wikitext").sha256
    (tmp_path / FILES["train"]).write_text(" = A = \n another text\n")
    assert study_text("wikitext").sha256 != before


def test_a_folder_without_the_files_is_an_error_that_names_the_variable(tmp_path, monkeypatch):
    monkeypatch.setenv("WIKITEXT2", str(tmp_path))
    with pytest.raises(UserError, match=r"WIKITEXT2 = .* has no file train\.tokens\.head\.txt"):
        study_text("wikitext")


def test_a_corpus_that_does_not_exist_is_named_with_those_that_do():
    with pytest.raises(UserError, match="'news' is not a corpus of the studies; use one of sotu, wikitext"):
        text_of("news")


def test_addresses_held_out_are_no_training_documents():
    text = study_text("sotu")
    assert not {document.name for document in text.train} & {document.name for document in text.validation}
    assert len(text.train) + len(text.validation) == 237


def test_the_pangram_is_named_as_what_it_is():
    assert pangram_text().record()["source"].startswith("two repeated sentences")
    assert (len(PANGRAM["train"]), len(PANGRAM["validation"])) == (19_980, 5_112)


def test_the_digest_of_text_of_ones_own_is_of_all_three_files(own_files):
    before = own_text(**own_files).sha256
    own_files["test"].write_text("x" * 300)
    assert own_text(**own_files).sha256 != before


def test_a_file_that_cannot_be_read_is_named_with_its_option(own_files, tmp_path):
    with pytest.raises(UserError, match=r"--test = .*gone.txt.*cannot be read"):
        own_text(**own_files | {"test": tmp_path / "gone.txt"})
    own_files["train"].write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UserError, match=r"--train = .*train.txt.*name a UTF-8 text file"):
        own_text(**own_files)
