"""Deep supervision of models that carry states: several segments on the same tokens, a loss and an optimiser step in each."""

from __future__ import annotations

from torch import Tensor, nn

from offramp.errors import UserError
from offramp.systems.objectives import Carried, Objective, cross_entropy


def segments_objective(segments: int) -> Objective:
    """For models with ``forward(tokens, states) -> (logits, states)``, such as ``models.recursive.HierarchicalLM``.

    Evaluation takes the logits of as many segments as training. Raises UserError for fewer than one.
    """
    if segments < 1:
        raise UserError(f"segments = {segments}: every batch needs at least 1")

    def loss(model: nn.Module, tokens: Tensor, targets: Tensor, carried: Carried) -> tuple[Tensor, Carried]:
        logits, states = model(tokens, carried)
        return cross_entropy(logits, targets), tuple(state.detach() for state in states)

    def logits(model: nn.Module, tokens: Tensor) -> Tensor:
        found, states = model(tokens)
        for _ in range(segments - 1):
            found, states = model(tokens, states)
        return found

    return Objective(loss, logits, segments)
