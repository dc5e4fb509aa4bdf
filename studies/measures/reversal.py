"""The reversal test: does a model that learnt "A is B" know "B is A"?

A file of pairs gives every fact in both directions as a well-formed sentence. A model learns some facts forwards and never sees the
others, the control. Sentences differ in how likely they are whatever was learnt, so the two directions are compared after the same
difference of control facts has been taken off:

    reversal = (backward - forward) of trained facts - (backward - forward) of control facts         in nats per token

Zero: what was learnt forwards serves backwards as well. The published test had no
control, and its backward sentences named the subject twice ("Paris is the capital of The capital of France", flaw H6): ``repeated``.

Words that were learnt are likelier in any sentence. Whether it is the *fact* that is known, ``crossed`` facts tell, which pair the
subject of one trained fact with the object of another of the same relation: how much likelier is the right answer than these?
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from offramp.errors import UserError
from offramp.states.resampling import DocumentSums, interval

COLUMNS = ("subject", "forward", "object", "backward")
DIRECTIONS = ("forward", "backward", "repeated")

Encode = Callable[[str], list[int]]
TokenNll = Callable[[Tensor, Tensor], Tensor]
"""NLL (B, T) in nats of targets (B, T) after tokens (B, T)."""


@dataclass(frozen=True)
class Pair:
    """One fact: "subject forward object" and "object backward subject"."""

    subject: str
    forward: str
    object: str
    backward: str

    def parts(self, direction: str) -> tuple[str, str]:
        """A sentence as what comes before the answer and the answer. UserError for an unknown direction."""
        if direction not in DIRECTIONS:
            raise UserError(f"direction = {direction!r} is unknown; use one of {', '.join(DIRECTIONS)}")
        if direction == "forward":
            return _capitalised(f"{self.subject} {self.forward}"), self.object
        opening = _capitalised(f"{self.object} {self.backward}")
        return (
            opening,
            self.subject if direction == "backward" else f"{self.subject} {_capitalised(self.subject)}",
        )

    def sentence(self, direction: str) -> str:
        return " ".join(self.parts(direction))


def _capitalised(text: str) -> str:
    return text[:1].upper() + text[1:]


def read_pairs(path: Path) -> list[Pair]:
    """The facts of a tab-separated file with the header subject, forward, object, backward.

    UserError, naming file and line: a file that cannot be read, another header, a row with a missing or empty field, a fact that
    occurs twice, fewer than two facts.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); name a UTF-8 file of pairs") from None
    if not lines or tuple(lines[0].split("\t")) != COLUMNS:
        raise UserError(
            f"{path}: line 1 is {lines[0] if lines else ''!r}; write the header {' '.join(COLUMNS)}, separated by tabs"
        )
    pairs: dict[Pair, int] = {}
    for number, line in enumerate(lines[1:], start=2):
        fields = line.split("\t")
        if len(fields) != len(COLUMNS) or not all(entry.strip() for entry in fields):
            raise UserError(
                f"{path}: line {number} has {len(fields)} fields ({line!r}); write {', '.join(COLUMNS)}, none of them "
                "empty, separated by tabs"
            )
        pair = Pair(*(entry.strip() for entry in fields))
        if pair in pairs:
            raise UserError(f"{path}: line {number} repeats line {pairs[pair]} ({line!r}); remove one")
        pairs[pair] = number
    if len(pairs) < 2:
        raise UserError(f"{path}: has {len(pairs)} fact(s); a control needs at least 2")
    return list(pairs)


def crossed(pairs: Sequence[Pair]) -> tuple[list[Pair], list[Pair]]:
    """Right and wrong facts: every subject with every object of the other facts of its relation, and as often with its own.

    Both lists have the same answers, equally often. UserError where no relation has two facts.
    """
    found = [
        (one, Pair(one.subject, one.forward, other.object, one.backward))
        for one in pairs
        for other in pairs
        if one != other and (one.forward, one.backward) == (other.forward, other.backward)
    ]
    if not found:
        raise UserError(
            f"pairs: none of {len(pairs)} facts shares its relation with another; give at least 2 facts of one relation"
        )
    return [right for right, _ in found], [wrong for _, wrong in found]


@dataclass(frozen=True)
class Scored:
    """Mean NLL in nats per token of every fact's sentence in one direction, and of its answer alone, each (P,)."""

    sentence: np.ndarray
    answer: np.ndarray


@torch.no_grad()
def score(
    pairs: Sequence[Pair], direction: str, encode: Encode, start: int | None, token_nll: TokenNll
) -> Scored:
    """What a model makes of the facts; ``start`` is the token that comes before a sentence, None for nothing, as published.

    Then nothing predicts a sentence's first token, which is left out.
    """
    rows, answers = [], []
    for pair in pairs:
        opening, answer = pair.parts(direction)
        before = [*([] if start is None else [start]), *encode(opening)]
        after = encode(f" {answer}")
        rows.append(torch.tensor(before + after))
        answers.append(len(after))
    lengths = torch.tensor([len(row) for row in rows])
    padded = torch.nn.utils.rnn.pad_sequence(
        rows, batch_first=True
    )  # on the right: causal models do not see it
    nll = token_nll(padded[:, :-1], padded[:, 1:]).double()
    place = torch.arange(nll.shape[1])
    inside = place < lengths.unsqueeze(1) - 1
    answered = inside & (place >= (lengths - 1 - torch.tensor(answers)).unsqueeze(1))
    return Scored(*(((nll * part).sum(1) / part.sum(1)).numpy() for part in (inside, answered)))


def reversal(
    trained: tuple[np.ndarray, np.ndarray], control: tuple[np.ndarray, np.ndarray]
) -> dict[str, float]:
    """Figures in nats per token from the NLL (forward, backward) of trained facts (P,) and of control facts (Q,).

    ``learnt`` and ``learnt_backward``: by how much trained facts are more likely than control facts, in each direction.
    """
    (forward, backward), (control_forward, control_backward) = (
        (one.mean(), two.mean()) for one, two in (trained, control)
    )
    learnt, learnt_backward = control_forward - forward, control_backward - backward
    return {
        "gap": float(backward - forward),
        "control_gap": float(control_backward - control_forward),
        "reversal": float(learnt - learnt_backward),
        "learnt": float(learnt),
        "learnt_backward": float(learnt_backward),
    }


def reversal_interval(
    trained: tuple[np.ndarray, np.ndarray],
    control: tuple[np.ndarray, np.ndarray],
    draws: int = 2000,
    seed: int = 0,
) -> list[float] | None:
    """Bootstrap interval [low, high] of ``reversal`` over facts, trained and control ones each among themselves; as ``interval``."""
    found = []
    for number, (forward, backward) in enumerate((trained, control)):
        sums = DocumentSums(np.arange(len(forward)), {"gap": backward - forward})
        found.append(sums.resample(draws, seed + number)["gap"])
    return interval(found[0] - found[1])
