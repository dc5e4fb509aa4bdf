"""Names that several rooms share, each in one place: no logic, and nothing that takes time to import."""

from __future__ import annotations

from typing import NamedTuple


class Control(NamedTuple):
    """Something that routing is held against, on the same tokens and at the same exit shares."""

    label: str
    note: str


SIGNAL = "signal"
RANDOM = "random"
LOSS_ORACLE = "loss_oracle"
GAIN_ORACLE = "gain_oracle"
CONTROLS = {
    RANDOM: Control("random exits", "the floor"),
    LOSS_ORACLE: Control("loss oracle", "knows the loss at the exit"),
    GAIN_ORACLE: Control("gain oracle", "knows what depth would buy"),
}
"""Controls that pick who leaves, by the names that results know them by: every table and figure calls them by these labels."""
FIXED = "fixed"
"""What the threshold curve calls fixed depths: all tokens leave at one exit."""
