"""One pass over tokens x vocabulary for the softmax of a readout at many ranks.

Logits at a rank are those at the rank before plus the components in between, added while the block of logits
is in a core's cache: all ranks together cost one product with W instead of one each. Shapes as in
``states.statistics``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from offramp.states.statistics import Readout, Softmax, buffers, full_precision, slices

SIGNALS = ("softmax", "max_logit", "max_minus_mean", "margin")
"""Signals of the report loss-prediction, by its names; softmax is the largest probability."""
BLOCK = 2**17
"""Logits of one block.

Smaller than in ``states.statistics``: every rank comes back to it and writes another beside it.
"""
CHUNK = 8192
"""Rows taken to float64 at a time."""


class Factors(Protocol):
    """What makes h_r = mean + L_r R_r^T (h - mean), in float64.

    mean (D,), left and right (D, D); the first r columns of both make rank r.
    """

    @property
    def mean(self) -> Tensor: ...

    @property
    def left(self) -> Tensor: ...

    @property
    def right(self) -> Tensor: ...


class _AtRank(Softmax):
    """The softmax at one rank.

    Its logits are those the rank before it left in the shared buffer, plus a few components.
    ``inputs`` are the states h_r, so that single logits (the target's, the winners') come from W itself.
    """

    def __init__(self, readout: Readout, tile: int, logits: Tensor, step: Tensor, first: bool):
        """step (V, K): the components' columns of the vocabulary; ``first``: nothing to add them to."""
        super().__init__(readout, tile, len(logits))
        self._logits, self._first = logits, first
        self._steps = [part.T.contiguous() for part in step.split(readout.columns)]

    def begin(self, states: Tensor, coefficients: Tensor) -> None:
        """Begin with the tokens of states h_r (T, D), whose new components have ``coefficients`` (T, K)."""
        self.start(states)
        self.coefficients = coefficients

    def multiply(self, block: int, rows: slice) -> Tensor:
        buffer, step = self._logits[: rows.stop - rows.start], self._steps[block]
        logits = buffer[:, : step.shape[1]]
        torch.addmm(logits, self.coefficients[rows], step, beta=0 if self._first else 1, out=logits)
        if self._first and step.shape[1] < self.readout.columns:
            buffer[:, step.shape[1] :] = -torch.inf
        peaks = self.peaks[rows, block]
        torch.amax(buffer.view(len(buffer), self.readout.group, -1), 1, out=peaks)
        if len(self.readout.blocks) == 1:
            slot = torch.max(peaks, 1, out=(self.total[0, rows], self.slot[rows])).indices.unsqueeze(1)
            torch.gather(buffer, 1, slot + self._entries, out=self.winners[rows])
        return logits


class _Ladder:
    """All ranks of one variant, climbed for one tile of tokens at a time."""

    def __init__(
        self, readout: Readout, approximation: Factors, ranks: Sequence[int], tile: int, logits: Tensor
    ):
        self.approximation = approximation
        self.steps = [slice(low, high) for low, high in zip((0, *ranks), ranks)]
        self.constant = bool(approximation.mean.any())
        self.ranks: list[_AtRank] = []
        for step in self.steps:
            factors = approximation.left[:, step]
            # the constant logits are one more component, of coefficient 1
            if self.constant and not self.ranks:
                factors = torch.cat([factors, approximation.mean.unsqueeze(1)], 1)
            columns = torch.cat([(part.double() @ factors).float() for part in readout.matrix.split(CHUNK)])
            self.ranks.append(_AtRank(readout, tile, logits, columns, first=not self.ranks))

    def start(self, inputs: Tensor) -> None:
        """Begin with readout inputs (T, D)."""
        offset, states = inputs.double() - self.approximation.mean, self.approximation.mean
        for step, at_rank in zip(self.steps, self.ranks):
            coefficients = offset @ self.approximation.right[:, step]
            states = states + coefficients @ self.approximation.left[:, step].T
            if self.constant and not step.start:
                coefficients = F.pad(coefficients, (0, 1), value=1.0)
            at_rank.begin(states.float(), coefficients.float())


@full_precision
def measure_ranks(
    inputs: Tensor,
    readout: Readout,
    targets: Tensor,
    approximations: Mapping[str, Factors],
    ranks: Sequence[int],
) -> tuple[dict[str, Any], dict[tuple[str, int], dict[str, Any]]]:
    """Exact signals and losses (N,), and what they are per variant and rank.

    There beside the signals (N,) stand the means ``agreement`` and ``loss``.
    """
    (exact,), tile, rows = buffers(inputs, [readout])
    rows = min(rows, max(1, BLOCK // readout.columns))
    logits, weights = (torch.empty(rows, readout.columns) for _ in range(2))
    ladders = {
        name: _Ladder(readout, factors, ranks, tile, logits) for name, factors in approximations.items()
    }
    softmaxes = [exact, *(at_rank for ladder in ladders.values() for at_rank in ladder.ranks)]
    signals = np.empty((len(softmaxes), len(SIGNALS), len(inputs)), np.float32)
    losses, sums = np.empty(len(inputs), np.float32), np.zeros((len(softmaxes), 2))
    for share in slices(len(inputs), tile):
        x, target = inputs[share].float(), targets[share]
        exact.start(x)
        for ladder in ladders.values():
            ladder.start(x)
        for tokens in slices(len(x), rows):
            for block, part in enumerate(readout.blocks):
                scratch = weights[: tokens.stop - tokens.start, : len(part)]
                for softmax in softmaxes:  # in order: every rank adds to the logits of the one before
                    softmax.exponentiate(softmax.multiply(block, tokens), block, tokens, out=scratch)
        for place, softmax in enumerate(softmaxes):
            softmax.finish()
            loss = softmax.loss(target)
            signals[place, :, share] = _signals(softmax)
            sums[place] += float((softmax.argmax == exact.argmax).sum()), float(loss.double().sum())
            if softmax is exact:
                losses[share] = loss.numpy()
    keys = [(name, rank) for name in ladders for rank in ranks]
    agreement, mean_loss = (sums / len(inputs)).T.tolist()
    return dict(zip(SIGNALS, signals[0])) | {"loss": losses}, {
        key: dict(zip(SIGNALS, signals[place])) | {"agreement": agreement[place], "loss": mean_loss[place]}
        for place, key in enumerate(keys, start=1)
    }


def _signals(softmax: Softmax) -> np.ndarray:
    """(signals, T), in the order of SIGNALS."""
    mean = softmax.inputs @ softmax.readout.mean
    peak = softmax.peak
    return torch.stack(
        [torch.exp(peak - softmax.log_normaliser), peak, peak - mean, peak - softmax.second]
    ).numpy()
