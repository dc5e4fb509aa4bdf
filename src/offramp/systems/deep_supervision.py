"""Deep supervision of models that carry states: several segments on the same tokens, each with a loss and an
optimiser step of its own.
"""

from __future__ import annotations

from torch import Tensor, nn

from offramp.errors import UserError
from offramp.systems.objectives import Carried, Objective, cross_entropy


def segments_objective(segments: int) -> Objective:
    """An objective for models with ``forward(tokens, states) -> (logits, states)``, such as
    ``HierarchicalLM``.

    Evaluation takes the logits of as many segments as training. Raises UserError for fewer than one.
    """
    if segments < 1:
        raise UserError(f"segments = {segments}: every batch needs at least 1")

    def loss(model: nn.Module, tokens: Tensor, targets: Tensor, carried: Carried) -> tuple[Tensor, Carried]:
        logits, states = model(tokens, carried)
        return cross_entropy(logits, targets), tuple(state.detach() for state in states)

    def logits(model: nn.Module, tokens: Tensor) -> Tensor:
        last, states = model(tokens)
        for _ in range(segments - 1):
            last, states = model(tokens, states)
        return last

    return Objective(loss, logits, segments)
