"""Exit classifiers: small networks that decide from a token's state (and statistics) whether it may leave."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn


class ExitClassifier(nn.Module):
    """Standardise -> (Linear -> GELU)* -> Linear, giving one score per token; higher = surer to leave.

    ``hidden`` are the widths between; [] is a linear classifier. One of benefits has an output per later exit.
    """

    mean: Tensor
    scale: Tensor
    centre: Tensor
    spread: Tensor

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
        """Scores (N, L) of inputs (N, I): one per label, standardised where labels are costs."""
        return self.layers((inputs - self.mean) * self.scale)

    def forward(self, inputs: Tensor) -> Tensor:
        """Scores (N,) of inputs (N, I); for benefits, of going on to full depth."""
        return self.outputs(inputs)[:, -1]

    def costs(self, inputs: Tensor) -> Tensor:
        """Predicted costs (N, L), in the label's unit, of leaving instead of going on to each later exit."""
        return self.as_costs(self.outputs(inputs))

    def as_costs(self, outputs: Tensor) -> Tensor:
        """What ``outputs`` (N, L) mean in the label's unit."""
        return self.centre - self.spread * outputs

    @property
    def flops(self) -> int:
        """Floating-point operations per token (a multiply-add counts two)."""
        return sum(
            2 * layer.in_features * layer.out_features
            for layer in self.layers
            if isinstance(layer, nn.Linear)
        )


def classifier_inputs(which: str, hidden: Tensor | None, statistics: Tensor | None) -> Tensor:
    """Inputs (N, I) of an exit classifier that sees the ``state``, the ``statistics``, or ``both``."""
    parts = {"state": [hidden], "statistics": [statistics], "both": [hidden, statistics]}[which]
    return torch.cat(parts, dim=1)
