"""What an exit classifier is taught: a label per token, computed from cached states.

Names and sources: ``correct``, ``distill``, ``loss`` (seed 003), ``loss_regression``, ``easy`` (seed 004: loss at most
``exits.easy_loss``), ``agreement`` (CALM's consistency), and the benefit of going deeper: ``gain`` (loss here minus loss
at a later exit) and ``divergence`` (KL of the full-depth prediction from this one, which is the gain that full depth itself
expects).
"""

from __future__ import annotations

import numpy as np

from offramp.errors import UserError
from offramp.states.store import States

KINDS = {
    "correct": "binary",
    "agreement": "binary",
    "easy": "binary",
    "distill": "probability",
    "loss": "probability",
    "loss_regression": "cost",
    "gain": "cost",
    "divergence": "cost",
}
"""binary: trained by BCE; probability: MSE of the sigmoid (seed 003); cost: regressed, and low is confident."""


def label(states: States, exit: int, name: str, easy_loss: float) -> np.ndarray:
    """The label ``name`` of every token at ``exit``, float32 (num_tokens, L).

    L is 1, but for ``vocabulary.BENEFITS`` the number of later exits: what going on to each of them would save; full depth comes last.
    """
    if name not in KINDS:
        raise UserError(f"exits.label = {name!r} is not a label; known: {', '.join(KINDS)}")
    later = range(exit + 1, states.num_exits)
    if name == "correct":
        columns = [states.column(f"argmax_{exit}") == states.column("target")]
    elif name == "agreement":
        columns = [agreement(states, exit)]
    elif name == "easy":
        columns = [states.column(f"loss_{exit}") <= easy_loss]
    elif name == "distill":
        columns = [states.column(f"max_prob_{exit}")]
    elif name == "loss":
        columns = [states.column(f"correct_prob_{exit}")]
    elif name == "loss_regression":
        columns = [states.column(f"loss_{exit}")]
    elif name == "gain":
        columns = [states.column(f"loss_{exit}") - states.column(f"loss_{other}") for other in later]
    else:
        columns = [_divergence(states, exit) - _divergence(states, other) for other in later]
    return np.stack(columns, axis=1).astype(np.float32)


def agreement(states: States, exit: int) -> np.ndarray:
    """Whether the exit's argmax is the full-depth argmax, bool (num_tokens,)."""
    return states.column(f"argmax_{exit}") == states.column(f"argmax_{states.num_exits - 1}")


def _divergence(states: States, exit: int) -> np.ndarray:
    last = states.num_exits - 1
    return states.column(f"divergence_{exit}") if exit < last else np.zeros(states.num_tokens, np.float32)
