"""Whether bytes or rows that should be text are text, looked at before anything is made of them.

UTF-8 that is damaged shows when it is decoded. What shows there not at all is refused here: zero bytes, as
UTF-16 and UTF-32 are full of, and files in which control characters are common, as in binary ones.
"""

from __future__ import annotations

import codecs
from pathlib import Path

from offramp.errors import UserError

MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
"""What a file may begin with, and what it then is; UTF-32 first: its mark begins with that of UTF-16."""
CONTROLS = bytes(sorted({*range(1, 32), 127} - set(b"\t\n\v\f\r")))
"""Control characters that a text has no use for, though logs and terminals do."""
MOST_CONTROLS = 0.05
"""Share of them up to which a file counts as text."""
BLOCK = 2**16
"""Bytes looked at together."""


def check_file(path: Path, parameter: str) -> None:
    """UserError, naming the ``parameter``, the file and the place, where its bytes are no UTF-8 text.

    OSError where it cannot be read.
    """
    where = f"{parameter}: {path}"
    controls, size, first = 0, 0, None
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            if not size and (name := next((MARKS[mark] for mark in MARKS if block.startswith(mark)), None)):
                raise UserError(f"{where} is {name} by its mark at byte 0; {_convert(name)}")
            check_zeros(block, where, size)
            plain = block.translate(None, CONTROLS)
            if first is None and len(plain) < len(block):
                first = size + next(place for place, byte in enumerate(block) if byte in CONTROLS)
            controls, size = controls + len(block) - len(plain), size + len(block)
    if controls > MOST_CONTROLS * size:
        raise UserError(
            f"{where} is no text: {controls / size:.0%} of its {size} bytes are control characters, the "
            f"first at byte {first}, and at most {MOST_CONTROLS:.0%} may be; convert it, or leave it out"
        )


def check_zeros(data: bytes, where: str, start: int = 0) -> None:
    """UserError where bytes that begin at ``start`` have a zero among them: text has none."""
    if (place := data.find(0)) >= 0:
        name = _encoding_by_zeros(data)
        looks, remedy = (f", which looks like {name} without a mark", _convert(name)) if name else ("", LEAVE)
        raise UserError(f"{where} has a zero byte (NUL) at byte {start + place}{looks}; {remedy}")


def check_row(text: str, where: str) -> None:
    """The same of a row of a dataset: UserError where it has a zero character, or is mostly control ones."""
    if (place := text.find("\0")) >= 0:
        raise UserError(f"{where} has a zero character (NUL) at character {place}; {LEAVE}")
    data = text.encode()
    if (controls := len(data) - len(data.translate(None, CONTROLS))) > MOST_CONTROLS * max(len(data), 100):
        raise UserError(
            f"{where} is no text: {controls} of its {len(data)} bytes are control characters; {LEAVE}"
        )


LEAVE = "correct it, or leave it out"


def _convert(encoding: str) -> str:
    return f"convert it, e.g. `iconv -f {encoding} -t UTF-8`"


def _encoding_by_zeros(data: bytes) -> str | None:
    """What the places of zero bytes say: those of characters below 256 lie at one side of each unit."""
    units = len(data) // 4
    if not units:
        return None
    zeros = [data[place::4].count(0) / units for place in range(4)]
    if min(zeros[2:]) > 0.9 and zeros[0] < 0.1:
        return "UTF-32LE"
    if min(zeros[:2]) > 0.9 and zeros[3] < 0.1:
        return "UTF-32BE"
    even, odd = (zeros[0] + zeros[2]) / 2, (zeros[1] + zeros[3]) / 2
    if max(even, odd) > 0.2 and min(even, odd) < 0.05:
        return "UTF-16LE" if odd > even else "UTF-16BE"
    return None
