"""Easy and hard tokens, and what layers contribute to them.

Which tokens are hard? Classes by the loss of the last layer select on the very quantity they are then
compared by: with noise in it, the easy class must improve towards the last layer and the hard one must
worsen, whatever the layers do (regression to the mean; Galton 1886). Classes by the loss of another model,
``consensus``, share none of that noise.

Shapes: L layers, B windows, T tokens of a window, N = B T tokens, C classes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from offramp.errors import UserError
from offramp.models.blockwise import Blockwise
from offramp.states.statistics import Readout, predictions

CLASSES = ("easy", "medium", "hard")
QUANTILES = (0.25, 0.75)
"""Of the difficulty: at or below the first a token is easy, at or above the second hard."""


@torch.no_grad()
def losses_without(model: Blockwise, tokens: Tensor, targets: Tensor, batch_size: int = 64) -> np.ndarray:
    """Loss at full depth when one layer is left out, per layer and token (L, N); windows and targets (B, T).

    That is what the layer contributes, whatever the length of its step.
    """
    last = model.config.num_blocks - 1
    readout, parts = Readout(model.readout_matrix(last)), []
    for x, y in zip(tokens.split(batch_size), targets.split(batch_size)):
        rows = []
        for skipped in range(last + 1):
            state = model.embed(x)
            for block in range(last + 1):
                state = state if block == skipped else model.run_block(block, state)
            read = model.readout_input(last, state.flatten(0, 1))
            rows.append(predictions(read, readout, y.flatten())[0])
        parts.append(torch.stack(rows))
    return torch.cat(parts, 1).cpu().numpy()


def classes(difficulty: np.ndarray, quantiles: tuple[float, float] = QUANTILES) -> np.ndarray:
    """0 (easy), 1 (medium) or 2 (hard) per token, (N,), by the quantiles of a difficulty (N,).

    UserError: quantiles that do not rise within [0, 1].
    """
    low, high = quantiles
    if not 0 <= low < high <= 1:
        raise UserError(
            f"quantiles = {quantiles}: the easy and the hard class overlap; "
            "give two rising shares within [0, 1]"
        )
    bounds = np.quantile(difficulty, quantiles)
    return np.where(difficulty <= bounds[0], 0, np.where(difficulty >= bounds[1], 2, 1))


def consensus(losses: list[np.ndarray], own: int) -> np.ndarray:
    """Difficulty (N,) of tokens for model ``own`` by all others: the mean of their losses (N,).

    UserError: fewer than two models.
    """
    others = [loss for number, loss in enumerate(losses) if number != own]
    if not others:
        raise UserError("consensus needs the losses of at least 2 models on the same tokens; add a seed")
    return np.mean(others, axis=0)


def class_means(values: np.ndarray, of_class: np.ndarray) -> np.ndarray:
    """(L, C) means of values (L, N) over the tokens of each class, NaN for a class without tokens."""
    with np.errstate(invalid="ignore"):
        return np.stack(
            [
                values[:, of_class == number].sum(1, dtype=np.float64) / (of_class == number).sum()
                for number in range(len(CLASSES))
            ],
            axis=1,
        )


def improvement(means: np.ndarray) -> np.ndarray:
    """By how much the loss falls from the first layer to the last, as a share of the first, (C,); means (L,
    C)."""
    return 1 - means[-1] / means[0]
