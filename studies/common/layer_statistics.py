"""What every layer of a model makes of every token: loss, prediction and confidence by the logit lens, how
far full depth's prediction lies from it, and its step.

After layer i the readout of the last layer is put on the hidden state h_i (logit lens): loss_i =
CE(head(h_i), target). The step of layer i is h_i - h_(i-1), h_0 the embedding. In a post-norm layer every
h_i has length sqrt(D) up to its norm's gains, so the length of a step says how far the direction turned,
and that of the first one is nearly constant.

"Layer" is what lies between two exits: a block, which in the models of the report is a single layer.

Shapes: L layers, B windows, T tokens of a window, N = B T tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from offramp.errors import UserError
from offramp.models.blockwise import Blockwise
from offramp.states.statistics import Readout, token_statistics


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
    divergence: np.ndarray
    """KL(last layer || layer) of the predictions in nats: what going on would buy, as the model sees it."""
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
    """Statistics of windows (B, T) and their targets, token by token in reading order.

    Every layer is read out through the last exit's norm and matrix.
    """
    last = model.config.num_blocks - 1
    readout, parts = Readout(model.readout_matrix(last)), []
    for x, y in zip(tokens.split(batch_size), targets.split(batch_size)):
        states = [state.flatten(0, 1) for state in (model.embed(x), *model(x))]
        reads = [model.readout_input(last, state) for state in states[1:]]
        of_layers = token_statistics(reads, [readout] * len(reads), y.flatten())
        of_layers[-1]["divergence"] = torch.zeros_like(of_layers[-1]["loss"])
        for values, (before, after) in zip(of_layers, pairwise(states)):
            values["step"] = (after - before).norm(dim=-1)
            values["turn"] = 1 - torch.cosine_similarity(after, before, dim=-1)
        parts.append(of_layers)
    columns = {
        name: torch.cat([torch.stack([values[name] for values in of_layers]) for of_layers in parts], 1)
        for name in ("loss", "argmax", "max_prob", "step", "turn", "divergence")
    }
    arrays = {name: column.cpu().numpy() for name, column in columns.items()}
    return LayerStatistics(**arrays, target=targets.flatten().cpu().numpy())


def distinct_contexts(tokens: np.ndarray, targets: np.ndarray, length: int) -> int:
    """How many different pairs of the last ``length`` tokens and the target occur in windows (B, T) and
    targets (B, T).

    In a text that repeats itself this, not the number of tokens, is what a share over tokens rests on.
    """
    window = tokens.shape[1]
    if not 0 < length <= window:
        raise UserError(
            f"length = {length}: contexts lie within windows of {window} tokens; choose 1 to {window}"
        )
    contexts = np.lib.stride_tricks.sliding_window_view(tokens, length, axis=1).reshape(-1, length)
    wanted = targets[:, length - 1 :].reshape(-1, 1)
    return len(np.unique(np.concatenate((contexts, wanted), axis=1), axis=0))
