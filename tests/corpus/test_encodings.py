"""Text that is none is refused before anything is made of it, by file and place."""

from __future__ import annotations

import pytest

from offramp.corpus.excerpts import Stretch
from offramp.corpus.sources import open_source
from offramp.errors import UserError
from tests.corpus.conftest import corpus, sentences

ENGLISH = sentences(40)


def refused(tmp_path, data: bytes, message: str) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(UserError, match=rf"^corpus\.paths: \S*a\.txt {message}"):
        open_source(corpus(paths=["a.txt"]), tmp_path)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_other_encodings_are_known_without_a_mark(encoding, tmp_path):
    name = encoding.upper().replace("-LE", "LE").replace("-BE", "BE")
    remedy = rf"which looks like {name} without a mark; convert it, e\.g\. `iconv -f {name} -t UTF-8`"
    refused(tmp_path, ENGLISH.encode(encoding), rf"has a zero byte \(NUL\) at byte \d, {remedy}")


@pytest.mark.parametrize(
    ("encoding", "mark", "name"),
    [
        ("utf-16-le", b"\xff\xfe", "UTF-16"),
        ("utf-16-be", b"\xfe\xff", "UTF-16"),
        ("utf-32-le", b"\xff\xfe\0\0", "UTF-32"),
        ("utf-32-be", b"\0\0\xfe\xff", "UTF-32"),
    ],
)
def test_other_encodings_are_known_by_their_mark(encoding, mark, name, tmp_path):
    data = mark + ENGLISH.encode(encoding)
    refused(tmp_path, data, rf"is {name} by its mark at byte 0; convert it, e\.g\. `iconv -f {name} ")


def test_a_zero_byte_is_named_with_its_place_also_beyond_the_first_block(tmp_path):
    size = 2**16 + 76
    refused(tmp_path, b"a\n" * (size // 2) + b"x\0", rf"has a zero byte \(NUL\) at byte {size + 1}; ")


def test_a_binary_file_is_named_by_its_share_of_control_characters(tmp_path):
    data = b"text \x01\x02" * 100
    refused(tmp_path, data, r"is no text: 29% of its 700 bytes are control characters, the first at byte 5, ")


def test_some_control_characters_are_text(tmp_path):
    """As in the log of a terminal; the report shows them as signs."""
    text = ENGLISH + "\x1b[31mred\x1b[0m\tand a tab, a form feed \f and \x7f\n"
    (tmp_path / "a.txt").write_bytes(text.encode())
    pieces = open_source(corpus(paths=["a.txt"]), tmp_path)
    assert "".join(piece.text for piece in pieces) == text


def test_a_zero_byte_in_the_text_of_suitability_is_named_with_its_place():
    data = b"plain text, then\0more"
    stretch = Stretch("notes.txt", 0, len(data), lambda start, stop: data[start:stop])
    with pytest.raises(
        UserError, match=r"^--text: notes\.txt has a zero byte \(NUL\) at byte 16; correct it"
    ):
        stretch.text(6, len(data))


def test_words_are_not_what_chinese_is_made_of(make, write_texts):
    """Between spaces stand whole sentences there, each of them unknown."""
    sentences = ("".join(chr(0x4E00 + (97 * n + 13 * i) % 900) for i in range(8)) for n in range(180))
    write_texts(["".join(next(sentences) + "。\n" for _ in range(20)) for _ in range(9)])
    with pytest.raises(
        UserError, match=r"tokenizer\.kind = 'word': \d+% of the tokens .* set tokenizer\.kind: bpe"
    ):
        make(kind="word", window=2)
    assert make(kind="bpe", window=2).meta["splits"]["train"]["unknown_rate"] == 0
