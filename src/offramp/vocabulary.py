"""Names that several rooms share, each in one place: no logic, and nothing that takes time to import."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

LEARNED = "learned"
"""The confidence of the trained exit classifier."""
SIGNALS = (
    LEARNED,
    "max_prob",
    "margin_prob",
    "margin",
    "entropy",
    "max_logit",
    "max_minus_mean",
    "saturation",
    "patience",
)
"""What exits.confidence may name: signals that can be had at inference."""
ORACLES = ("correct_prob",)
"""Signals that need the target: for training labels and controls only."""

JointLabel = Literal["correct", "distill", "loss"]
"""Labels that need no deeper exit than their own, so a classifier can learn them during pretraining."""
Benefit = Literal["gain", "divergence"]
"""Labels in nats that going deeper would save, to be weighed against what going deeper costs."""
Label = Literal[JointLabel, "loss_regression", "easy", "agreement", Benefit]
"""What an exit classifier can be taught."""
BENEFITS: tuple[Benefit, ...] = get_args(Benefit)


class Control(NamedTuple):
    """Something that routing is held against, on the same tokens and at the same exit shares."""

    label: str
    note: str


SIGNAL = "signal"
RANDOM = "random"
LOSS_ORACLE = "loss_oracle"
DIVERGENCE_ORACLE = "divergence_oracle"
GAIN_ORACLE = "gain_oracle"
CONTROLS = {
    RANDOM: Control("random exits", "the floor, an expectation over draws"),
    LOSS_ORACLE: Control("loss oracle", "knows the loss at the exit"),
    DIVERGENCE_ORACLE: Control("divergence oracle", "the attainable ceiling: knows what depth would change"),
    GAIN_ORACLE: Control("gain oracle", "knows the next token, which no signal can"),
}
"""Controls that pick who leaves, by their names in results; tables and figures call them by these labels."""
FIXED = "fixed"
"""What the threshold curve calls fixed depths: all tokens leave at one exit."""

STATE, READOUT = "state", "readout"
LOOKS_AT = (STATE, READOUT)
"""What a signal looks at: the state alone, which a classifier reads, or a readout."""
RAW, TUNED = "raw", "tuned"
"""How an exit is read out: through the last exit's norm and head (logit lens), or as it was trained to be."""
