"""What every layer contributes to the predictions: losses of the logit lens, steps of the residual stream, agreement (seed 001).

After layer i the readout of the last layer is put on the hidden state h_i (logit lens): loss_i = CE(head(h_i), target). The
contribution of layer i is the step h_i - h_(i-1), h_0 the embedding. In a post-norm layer every h_i has length sqrt(D) up to
its norm's gains, so the length of a step says how far the direction turned, and that of the first one is nearly constant.

"Layer" is what lies between two exits: a block, which in the models of the seed is a single layer.

**Which tokens are hard?** Classes by the loss of the last layer select on the very quantity they are then compared by: with noise
in it, the easy class must improve towards the last layer and the hard one must worsen, whatever the layers do (regression to
the mean; Galton 1886). Classes by the loss of another model, ``consensus``, share none of that noise.

Shapes: L layers, N tokens, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from offramp.errors import UserError
from offramp.models.blockwise import Blockwise
from offramp.states.statistics import Readout, predictions

CLASSES = ("easy", "medium", "hard")
QUANTILES = (0.25, 0.75)
"""Of the difficulty: at or below the first a token is easy, at or above the second hard."""


@dataclass(frozen=True)
class LayerStatistics:
    """Per layer and token, each (L, N)."""

    loss: np.ndarray
    """Nats."""
    argmax: np.ndarray
    max_prob: np.ndarray
    step: np.ndarray
    """Length of h_i - h_(i-1)."""
    turn: np.ndarray
    """1 - cos(h_i, h_(i-1)): 0 keeps the direction, 1 is a right angle."""
    target: np.ndarray
    """(N,)"""

    @property
    def correct(self) -> np.ndarray:
        """bool (L, N)"""
        return self.argmax == self.target


@torch.no_grad()
def layer_statistics(
    model: Blockwise, tokens: Tensor, targets: Tensor, batch_size: int = 64
) -> LayerStatistics:
    """Statistics of windows (B, T) and their targets, token by token in reading order; N = B * T.

    Every layer is read out through the last exit's norm and matrix.
    """
    last = model.config.num_blocks - 1
    readout, parts = Readout(model.readout_matrix(last)), []
    for here, wanted in zip(tokens.split(batch_size), targets.split(batch_size)):
        states = [state.flatten(0, 1) for state in (model.embed(here), *model(here))]
        found = [
            _layer(model.readout_input(last, after), before, after, readout, wanted.flatten())
            for before, after in pairwise(states)
        ]
        parts.append([torch.stack(rows) for rows in zip(*found)])
    columns = [torch.cat(columns, 1).cpu().numpy() for columns in zip(*parts)]
    return LayerStatistics(*columns, target=targets.flatten().cpu().numpy())


def _layer(
    read: Tensor, before: Tensor, after: Tensor, readout: Readout, targets: Tensor
) -> tuple[Tensor, ...]:
    return (
        *predictions(read, readout, targets),
        (after - before).norm(dim=-1),
        1 - torch.cosine_similarity(after, before, dim=-1),
    )


@torch.no_grad()
def losses_without(model: Blockwise, tokens: Tensor, targets: Tensor, batch_size: int = 64) -> np.ndarray:
    """Loss at full depth when one layer is left out, per layer and token (L, N): what it contributes, whatever its step."""
    last = model.config.num_blocks - 1
    readout, parts = Readout(model.readout_matrix(last)), []
    for here, wanted in zip(tokens.split(batch_size), targets.split(batch_size)):
        rows = []
        for skipped in range(last + 1):
            x = model.embed(here)
            for block in range(last + 1):
                x = x if block == skipped else model.run_block(block, x)
            rows.append(predictions(model.readout_input(last, x.flatten(0, 1)), readout, wanted.flatten())[0])
        parts.append(torch.stack(rows))
    return torch.cat(parts, 1).cpu().numpy()


def classes(difficulty: np.ndarray, quantiles: tuple[float, float] = QUANTILES) -> np.ndarray:
    """0 (easy), 1 (medium) or 2 (hard) per token, (N,), by the quantiles of a difficulty (N,).

    UserError: quantiles that do not rise within [0, 1].
    """
    low, high = quantiles
    if not 0 <= low < high <= 1:
        raise UserError(
            f"quantiles = {quantiles}: the easy and the hard class overlap; give two rising shares within [0, 1]"
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
    """By how much the loss falls from the first layer to the last, as a share of the first, (C,); means (L, C)."""
    return 1 - means[-1] / means[0]


def agreement(found: LayerStatistics, layer: int) -> np.ndarray:
    """bool (N,): whether ``layer`` predicts what the last one predicts. Equal predictions, right or wrong."""
    return found.argmax[layer] == found.argmax[-1]


def flag_agreement(found: LayerStatistics, layer: int) -> np.ndarray:
    """bool (N,): whether ``layer`` is right exactly where the last one is (seed 001): two different wrong answers "agree"."""
    return found.correct[layer] == found.correct[-1]


def distinct_contexts(tokens: np.ndarray, targets: np.ndarray, length: int) -> int:
    """How many different pairs of the last ``length`` tokens and the target occur in windows (B, T) and their targets (B, T).

    In a text that repeats itself this, not the number of tokens, is what a share over tokens rests on.
    """
    window = tokens.shape[1]
    if not 0 < length <= window:
        raise UserError(
            f"length = {length}: contexts lie within windows of {window} tokens; choose 1 to {window}"
        )
    seen = np.lib.stride_tricks.sliding_window_view(tokens, length, axis=1).reshape(-1, length)
    wanted = targets[:, length - 1 :].reshape(-1, 1)
    return len(np.unique(np.concatenate((seen, wanted), axis=1), axis=0))
