"""Easy and hard tokens, and what layers contribute to them.

Which tokens are hard? Classes by the loss of the last layer select on the very quantity they are then
compared by: with noise in it, the easy class must improve towards the last layer and the hard one must
worsen, whatever the layers do (regression to the mean; Galton 1886). Classes by the loss of other models,
``consensus``, share none of the noise of this model's training; what is chance in the next character itself
they share, for all models read the same text.

What easy and hard tokens are like is asked of the text, not of the model: is the pattern in the training
text, is the character the likeliest after the two before it, and of the model with its context cut short.

Shapes: L layers, B windows, T tokens of a window, N = B T tokens, C classes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from offramp.errors import UserError
from offramp.models.blockwise import Blockwise
from offramp.states.statistics import Readout, predictions
from studies.common.characters import Characters
from studies.common.layer_statistics import layer_statistics

CLASSES = ("easy", "medium", "hard")
QUANTILES = (0.25, 0.75)
"""Of the difficulty: at or below the first a token is easy, at or above the second hard."""
PATTERN, BEFORE, SHORT = 4, 2, 8
"""Characters of a pattern, before a likeliest character, and of a context that is cut short."""


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


def unseen(data: Characters, split: str) -> np.ndarray:
    """bool (N,): whether a token and the three before it are a pattern that the training text has not."""
    patterns = _grams(_read(data, split), PATTERN, data.vocab_size)
    known = np.isin(patterns, _grams(data.splits["train"].numpy(), PATTERN, data.vocab_size))
    return np.concatenate([np.zeros(PATTERN - 2, bool), ~known])  # the first tokens have too few before them


def likeliest(data: Characters, split: str) -> np.ndarray:
    """bool (N,): whether a token is what follows the two before it most often in the training text."""
    train = _grams(data.splits["train"].numpy(), BEFORE + 1, data.vocab_size)
    grams, counts = np.unique(train, return_counts=True)
    order = np.lexsort((-counts, grams // data.vocab_size))
    _, first = np.unique(grams[order] // data.vocab_size, return_index=True)
    is_first = np.isin(_grams(_read(data, split), BEFORE + 1, data.vocab_size), grams[order][first])
    return np.concatenate([np.zeros(BEFORE - 1, bool), is_first])


def cut_context(model: Blockwise, tokens: Tensor, targets: Tensor) -> np.ndarray:
    """Loss at full depth (N,) of windows (B, T) where a token sees at most ``SHORT`` tokens."""
    return layer_statistics(model, tokens.reshape(-1, SHORT), targets.reshape(-1, SHORT)).loss[-1]


def _read(data: Characters, split: str) -> np.ndarray:
    """The symbols of all windows of a split in their order and the last target, (N + 1,)."""
    tokens, targets = data.windows(split)
    return np.append(tokens.flatten().numpy(), targets[-1, -1])


def _grams(ids: np.ndarray, length: int, vocab_size: int) -> np.ndarray:
    """A number for every ``length`` symbols in a row of ids (M,): (M - length + 1,)."""
    rows = np.lib.stride_tricks.sliding_window_view(ids.astype(np.int64), length)
    return rows @ (vocab_size ** np.arange(length - 1, -1, -1))
