"""How a figure is written in prose: scaled, with its interval, as a word, or as unknown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

SCALES = {"%": (100, " %"), "M": (1e-6, " M")}
"""By the last character of a form: what a figure is multiplied by, and what follows it."""
COUNTS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


class Unknown:
    """Stands for a figure that could not be looked up, in whatever is done with it."""

    def __str__(self) -> str:
        return "?"

    def __bool__(self) -> bool:
        return True  # a condition on it is no second problem

    def __iter__(self):
        return iter(())

    def __getattr__(self, name: str) -> Unknown:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def _same(self, *_: Any) -> Unknown:
        return self

    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _same
    __neg__ = __pow__ = __getitem__ = __abs__ = _same
    __lt__ = __le__ = __gt__ = __ge__ = _same


UNKNOWN = Unknown()


def written(value: float, form: str, bounds: Sequence[float] | None = None) -> str:
    """A number, and its interval in brackets, as ``form`` says; never "-0".

    Raises ValueError for a form that is none.
    """
    factor, unit = SCALES.get(form[-1:], (1, ""))
    plain = form[:-1] + "f" if form[-1:] in SCALES else form

    def one(number: float, how: str) -> str:
        text = format(number if factor == 1 else number * factor, how)
        return text.lstrip("-+") if re.fullmatch(r"[-+]0(\.0*)?", text) else text

    interval = ""
    if bounds is not None:
        interval = " [{}, {}]".format(*(one(bound, plain.lstrip("+")) for bound in bounds))
    return one(value, plain) + unit + interval


def form(value: Any, form: str) -> Any:
    """The filter: a number that was computed from figures, as text."""
    return UNKNOWN if isinstance(value, Unknown) else written(value, form)


def in_words(value: Any) -> Any:
    """The filter: a small count as a word."""
    return COUNTS[value] if isinstance(value, int) and 0 <= value < len(COUNTS) else value


def listed(texts: Sequence[str]) -> str:
    """``9, 8 and 5 %``: the unit once."""
    shared = next((unit for _, unit in SCALES.values() if unit and texts[0].endswith(unit)), "")
    bare = [text.removesuffix(shared) for text in texts]
    return " and ".join([", ".join(bare[:-1]), bare[-1]] if len(bare) > 1 else bare) + shared
