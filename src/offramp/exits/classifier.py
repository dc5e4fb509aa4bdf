"""Exit classifiers: small networks that say how sure a token is to leave.

Shapes: N tokens, I inputs of the classifier, L labels.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn


class ExitClassifier(nn.Module):
    """Standardise -> (Linear -> GELU)* -> Linear: a score per token, the higher the surer to leave.

    ``hidden`` are the widths of the layers between; [] makes it linear. One that learned a benefit (gain or
    divergence) has an output per later exit; its score is that of full depth.
    """

    mean: Tensor
    """Mean (I,) of the inputs."""
    scale: Tensor
    """1 over the standard deviation (I,) of the inputs."""
    centre: Tensor
    """Mean (L,) of labels that are costs; 0 for others."""
    spread: Tensor
    """Standard deviation (L,) of labels that are costs; 1 for others."""

    def __init__(self, num_inputs: int, hidden: list[int], outputs: int = 1):
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_inputs))
        self.register_buffer("scale", torch.ones(num_inputs))
        self.register_buffer("centre", torch.zeros(outputs))
        self.register_buffer("spread", torch.ones(outputs))
        widths = [num_inputs, *hidden]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(widths):
            layers += [nn.Linear(before, after), nn.GELU()]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], outputs))

    def outputs(self, inputs: Tensor) -> Tensor:
        """Scores (N, L) of inputs (N, I): of costs, minus the standardised prediction."""
        return self.layers((inputs - self.mean) * self.scale)

    def forward(self, inputs: Tensor) -> Tensor:
        """Scores (N,) of inputs (N, I)."""
        return self.outputs(inputs)[:, -1]

    def costs(self, inputs: Tensor) -> Tensor:
        """Predicted costs (N, L) of leaving instead of going on to each later exit, in the label's unit."""
        return self.as_costs(self.outputs(inputs))

    def as_costs(self, outputs: Tensor) -> Tensor:
        """The costs (N, L), in the label's unit, that the scores ``outputs`` (N, L) stand for."""
        return self.centre - self.spread * outputs

    @property
    def flops(self) -> int:
        """FLOPs per token (a multiply-add counts two)."""
        return sum(
            2 * layer.in_features * layer.out_features
            for layer in self.layers
            if isinstance(layer, nn.Linear)
        )


def classifier_inputs(which: str, hidden: Tensor | None, statistics: Tensor | None) -> Tensor:
    """Inputs (N, I) of a classifier that sees the ``state``, the ``statistics`` or ``both``.

    ``hidden`` are hidden states (N, D), ``statistics`` those of ``States.statistics`` (N, 5); what is not
    seen may be None. ValueError where what is seen is None.
    """
    parts = {"state": [hidden], "statistics": [statistics], "both": [hidden, statistics]}[which]
    seen = [part for part in parts if part is not None]
    if len(seen) < len(parts):
        raise ValueError(f"a classifier of inputs {which} needs what it sees, not None")
    return torch.cat(seen, dim=1) if len(seen) > 1 else seen[0]
