"""The reversal test: does a model that learnt "A is B" know "B is A"?

A model learns some facts forwards and never sees the others, the control. Sentences differ in how likely
they are whatever was learnt, so the two directions are compared after the same difference of control facts
has been taken off:

    reversal = (backward - forward) of trained facts - (backward - forward) of control facts

Both are in nats per token. Zero: what was learnt forwards serves backwards as well. The published test had
no control, and its backward sentences named the subject twice ("Paris is the capital of France The capital
of France"): the direction "repeated".

Words that were learnt are likelier in any sentence. Whether it is the *fact* that is known, ``crossed``
facts tell, which pair the subject of one trained fact with the object of another of the same relation: how
much likelier is the right answer?

Shapes: P facts, trained; Q facts, the control; B sentences of T tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from offramp.errors import UserError
from offramp.states.resampling import GroupSums, interval
from studies.common.selective_models.facts import Fact

Encode = Callable[[str], list[int]]
TokenNll = Callable[[Tensor, Tensor], Tensor]
"""NLL (B, T) in nats of targets (B, T) after tokens (B, T)."""


def crossed(facts: Sequence[Fact]) -> tuple[list[Fact], list[Fact]]:
    """Right and wrong facts: every subject with every object of the other facts of its relation, and as
    often with its own.

    Both lists have the same answers, equally often. UserError where no relation has two facts.
    """
    pairs = [
        (one, Fact(one.subject, one.forward, other.object, one.backward))
        for one in facts
        for other in facts
        if one != other and (one.forward, one.backward) == (other.forward, other.backward)
    ]
    if not pairs:
        raise UserError(
            f"facts: none of {len(facts)} shares its relation with another; "
            "give at least 2 facts of one relation"
        )
    return [right for right, _ in pairs], [wrong for _, wrong in pairs]


@dataclass(frozen=True)
class FactScores:
    """Mean NLL in nats per token of every fact's sentence in one direction, and of its answer alone, each
    (P,)."""

    sentence: np.ndarray
    answer: np.ndarray


@torch.no_grad()
def score(
    facts: Sequence[Fact], direction: str, encode: Encode, start: int | None, token_nll: TokenNll
) -> FactScores:
    """How likely a model thinks the facts' sentences.

    ``start`` is the token before a sentence, None for nothing, as published: then nothing predicts a
    sentence's first token, which is left out.
    """
    rows, answers = [], []
    for fact in facts:
        opening, answer = fact.parts(direction)
        before = [*([] if start is None else [start]), *encode(opening)]
        after = encode(f" {answer}")
        rows.append(torch.tensor(before + after))
        answers.append(len(after))
    lengths = torch.tensor([len(row) for row in rows])
    # on the right: causal models do not see the padding
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    nll = token_nll(padded[:, :-1], padded[:, 1:]).double()
    place = torch.arange(nll.shape[1])
    inside = place < lengths.unsqueeze(1) - 1
    answered = inside & (place >= (lengths - 1 - torch.tensor(answers)).unsqueeze(1))
    return FactScores(*(((nll * part).sum(1) / part.sum(1)).numpy() for part in (inside, answered)))


def reversal(
    trained: tuple[np.ndarray, np.ndarray], control: tuple[np.ndarray, np.ndarray]
) -> dict[str, float]:
    """Figures in nats per token from the NLL (forward, backward) of trained facts (P,) and of control facts
    (Q,).

    ``learnt`` and ``learnt_backward``: by how much trained facts are more likely than control facts, in
    each direction.
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
    """Bootstrap interval [low, high] of ``reversal`` over facts, trained and control ones each among
    themselves.

    None where ``offramp.states.resampling.interval`` gives none.
    """
    gaps = []
    for number, (forward, backward) in enumerate((trained, control)):
        sums = GroupSums(np.arange(len(forward)), {"gap": backward - forward})
        gaps.append(sums.resample(draws, seed + number)["gap"])
    return interval(gaps[0] - gaps[1])
