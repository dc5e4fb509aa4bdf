"""Facts that a model is trained on and asked about: each as a sentence in both directions, "A is B" and "B
is A".

facts.tsv beside this file holds those that the studies use, one a line.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from offramp.errors import UserError

FACTS = Path(__file__).with_name("facts.tsv")
COLUMNS = ("subject", "forward", "object", "backward")
DIRECTIONS = ("forward", "backward", "repeated")


@dataclass(frozen=True)
class Fact:
    """One fact: "subject forward object" and "object backward subject"."""

    subject: str
    forward: str
    object: str
    backward: str

    def parts(self, direction: str) -> tuple[str, str]:
        """A sentence as what comes before the answer and the answer. UserError for an unknown direction.

        "repeated" is the published form of "backward", in which the subject stands twice.
        """
        if direction not in DIRECTIONS:
            raise UserError(f"direction = {direction!r} is unknown; use one of {', '.join(DIRECTIONS)}")
        if direction == "forward":
            return _capitalised(f"{self.subject} {self.forward}"), self.object
        opening = _capitalised(f"{self.object} {self.backward}")
        if direction == "backward":
            return opening, self.subject
        return opening, f"{self.subject} {_capitalised(self.subject)}"

    def sentence(self, direction: str) -> str:
        return " ".join(self.parts(direction))


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def read_facts(path: Path = FACTS) -> list[Fact]:
    """The facts of a tab-separated file with the header subject, forward, object, backward.

    UserError, naming file and line: a file that cannot be read, another header, a row with a missing or
    empty field, a fact that occurs twice, fewer than two facts.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); name a UTF-8 file of facts") from None
    if not lines or tuple(lines[0].split("\t")) != COLUMNS:
        raise UserError(
            f"{path}: line 1 is {lines[0] if lines else ''!r}; write the header {' '.join(COLUMNS)}, "
            "separated by tabs"
        )
    facts: dict[Fact, int] = {}
    for number, line in enumerate(lines[1:], start=2):
        fields = line.split("\t")
        if len(fields) != len(COLUMNS) or not all(entry.strip() for entry in fields):
            raise UserError(
                f"{path}: line {number} has {len(fields)} fields ({line!r}); write {', '.join(COLUMNS)}, "
                "none of them empty, separated by tabs"
            )
        fact = Fact(*(entry.strip() for entry in fields))
        if fact in facts:
            raise UserError(f"{path}: line {number} repeats line {facts[fact]} ({line!r}); remove one")
        facts[fact] = number
    if len(facts) < 2:
        raise UserError(f"{path}: has {len(facts)} fact(s); a control needs at least 2")
    return list(facts)
