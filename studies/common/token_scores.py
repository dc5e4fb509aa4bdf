"""Tokens of a model with one exit, the scores that a token's difficulty is read from, and splits of tokens by
a score.

Shared by the studies of the report loss-prediction. Shapes: N tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offramp.exits.ranking import loss_gap, most_confident
from offramp.states.store import States
from studies.common.tables import Table, Values

SCORES = ("max_prob", "max_logit", "max_minus_mean", "margin")
"""The scores of the report that inference can have; higher is surer."""


@dataclass(frozen=True)
class Tokens:
    """What is known of N tokens at exit 0: hidden states (N, D) float32 and columns (N,); losses in nats."""

    hidden: Tensor
    loss: np.ndarray
    correct_prob: np.ndarray
    scores: dict[str, np.ndarray]
    target: np.ndarray
    document: np.ndarray
    vocab_size: int

    def __len__(self) -> int:
        return len(self.loss)

    def select(self, rows: np.ndarray) -> Tokens:
        """The tokens ``rows`` (indices or a mask), in that order."""
        scores = {name: values[rows] for name, values in self.scores.items()}
        return Tokens(
            self.hidden[torch.from_numpy(rows)],
            self.loss[rows],
            self.correct_prob[rows],
            scores,
            self.target[rows],
            self.document[rows],
            self.vocab_size,
        )


def read_tokens(states: States, limit: int | None = None) -> Tokens:
    """What is known at exit 0 of all tokens, or of ``limit`` of them, evenly spaced."""
    count = min(limit or states.num_tokens, states.num_tokens)
    rows = np.zeros(states.num_tokens, dtype=bool)
    rows[np.linspace(0, states.num_tokens - 1, count).astype(np.int64)] = True

    def column(name: str) -> np.ndarray:
        values = states.column(name)[rows]
        return values.astype(np.float64) if values.dtype.kind == "f" else values

    scores = {name: column(f"{name}_0") for name in ("max_prob", "max_logit", "margin")}
    scores["max_minus_mean"] = scores["max_logit"] - column("mean_logit_0")
    return Tokens(
        states.hidden(0, rows),
        column("loss_0"),
        column("correct_prob_0"),
        scores,
        column("target"),
        column("document"),
        states.artifact.meta["vocab_size"],
    )


def correlation(one: np.ndarray, other: np.ndarray) -> float | None:
    """Pearson's r; None for fewer than three values or a constant one."""
    if len(one) < 3 or not one.std() or not other.std():
        return None
    return float(np.corrcoef(one, other)[0, 1])


def split(easy: np.ndarray, loss: np.ndarray) -> Values:
    """Mean losses in nats of the two sides of a split, their gap, and its share of the gap that the true loss
    would give.

    That is at the SAME share of easy tokens; the report divided by the gap at one half, which is a flaw.
    ``easy`` is a mask (N,), ``loss`` (N,). None where a side is empty.
    """
    count = int(easy.sum())
    sides = {
        "easy": float(loss[easy].mean()) if count else None,
        "hard": float(loss[~easy].mean()) if count < len(loss) else None,
    }
    if None in sides.values():
        return sides | {"gap": None, "oracle_share": None}
    gap = loss_gap(easy, loss)
    return sides | {"gap": gap, "oracle_share": gap / loss_gap(most_confident(-loss, count), loss)}


def median_split(score: np.ndarray, loss: np.ndarray) -> Values:
    """``split`` into the surer half by ``score`` and the rest; ties go to earlier tokens."""
    return split(most_confident(score, len(loss) // 2), loss)


def prefixed(name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{name}.{key}": value for key, value in values.items()}


def bars(sides: Sequence[tuple[str, float | None, float | None]]) -> Table:
    """Rows of a bar chart from (score, mean loss of easy tokens, of hard tokens); sides without tokens are
    left out."""
    return [
        {"score": name, "side": side, "loss": value}
        for name, *losses in sides
        for side, value in zip(("easy", "hard"), losses)
        if value is not None
    ]


COVERAGES = tuple(tenths / 10 for tenths in range(1, 11))


def risk_coverage(scores: Mapping[str, np.ndarray], loss: np.ndarray) -> Table:
    """Mean loss in nats of the surest share of the tokens, by every score (N,) and share in COVERAGES;
    ``loss`` (N,)."""
    rows = []
    for name, score in scores.items():
        ranked = loss[np.argsort(-score, kind="stable")]
        rows += [
            {
                "score": name,
                "coverage": share,
                "loss": float(ranked[: max(1, round(share * len(loss)))].mean()),
            }
            for share in COVERAGES
        ]
    return rows
