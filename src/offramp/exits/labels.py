"""What an exit classifier is taught: a label per token, computed from cached states.

Names and sources: ``correct``, ``distill``, ``loss`` (seed 003), ``loss_regression`` (seed 004), ``agreement``
(CALM's consistency), and the benefit of going deeper: ``gain`` (loss here minus loss at full depth) and
``divergence`` (KL of the full-depth prediction from this one).
"""

from __future__ import annotations

import numpy as np

from offramp.states.store import States

KINDS = {
    "correct": "binary", "agreement": "binary",
    "distill": "probability", "loss": "probability",
    "loss_regression": "cost", "gain": "cost", "divergence": "cost",
}
"""binary: trained by BCE; probability: MSE of the sigmoid (seed 003); cost: regressed, and low is confident."""


def label(states: States, exit: int, name: str) -> np.ndarray:
    """The label ``name`` of every token at ``exit``, float32 (num_tokens,)."""
    last = states.num_exits - 1
    if name == "correct":
        values = states.column(f"argmax_{exit}") == states.column("target")
    elif name == "agreement":
        values = agreement(states, exit)
    elif name == "distill":
        values = states.column(f"max_prob_{exit}")
    elif name == "loss":
        values = states.column(f"correct_prob_{exit}")
    elif name == "loss_regression":
        values = states.column(f"loss_{exit}")
    elif name == "gain":
        values = states.column(f"loss_{exit}") - states.column(f"loss_{last}")
    else:
        values = states.column(f"divergence_{exit}")
    return values.astype(np.float32)


def agreement(states: States, exit: int) -> np.ndarray:
    """Whether the exit's argmax is the full-depth argmax, bool (num_tokens,)."""
    return states.column(f"argmax_{exit}") == states.column(f"argmax_{states.num_exits - 1}")
