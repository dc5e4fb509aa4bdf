"""What an exit classifier is taught: a label per token, computed from cached states.

``correct``: the exit predicts the target. ``distill``: its largest probability. ``loss``: the probability of
the target (these three are of the report exit-labels). ``loss_regression``: the loss in nats. ``easy``: a
loss of at most ``exits.easy_loss`` (report loss-prediction). ``agreement``: the exit predicts what full depth
does (CALM's consistency, arXiv 2207.07061). Two say what going deeper is worth, in nats: ``gain``, the loss
at the exit minus the loss at a later exit, and ``divergence``, the KL divergence of the full-depth prediction
from the exit's minus that from a later exit's, which is the gain that full depth itself expects.
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
"""How each label is learned.

binary: by binary cross-entropy; probability: by squared error of the sigmoid (report exit-labels); cost: by
squared error, and a low cost is confident.
"""


def label(states: States, exit: int, name: str, easy_loss: float) -> np.ndarray:
    """The label ``name`` of every token at ``exit``, float32 (num_tokens, L).

    L is 1, but for gain and divergence the number of later exits: what going on to each of them would save,
    full depth last. ``easy_loss`` is in nats. UserError for an unknown label.
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
        columns = [states.column(f"loss_{exit}") - states.column(f"loss_{deeper}") for deeper in later]
    else:
        columns = [states.divergence(exit) - states.divergence(deeper) for deeper in later]
    return np.stack(columns, axis=1).astype(np.float32)


def agreement(states: States, exit: int) -> np.ndarray:
    """Whether the exit predicts what full depth predicts, bool (num_tokens,)."""
    return states.column(f"argmax_{exit}") == states.column(f"argmax_{states.num_exits - 1}")
