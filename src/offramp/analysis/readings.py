"""What every exit says of the same tokens, as if none had left before: from windows or from cached states.

Shapes: K exits, N tokens, S windows of T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from offramp.corpus.excerpts import Windows
from offramp.errors import UserError
from offramp.models.blockwise import Blockwise
from offramp.states.statistics import Readout, token_statistics
from offramp.states.store import States

BATCH = 8
"""Windows read at a time."""

Normed = Callable[[int, Tensor], Tensor]
"""What the readout matrix is applied to, (B * T, D): of an exit and the states (B, T, D) there."""


@dataclass(frozen=True)
class Readings:
    """What every exit says of the same tokens: (K, N) each, in nats but for argmax."""

    loss: np.ndarray
    argmax: np.ndarray
    divergence: np.ndarray
    """KL(full || exit): 0 at full depth."""
    group: np.ndarray
    """(N,) What each token is resampled with."""


@torch.no_grad()
def read_windows(
    model: Blockwise, windows: Windows, kinds: Mapping[str, Normed], device: torch.device
) -> dict[str, Readings]:
    """The early exits read out in every one of ``kinds``, beside full depth, in one pass over the windows.

    All exits share the last one's readout matrix, as those of checkpoints do. UserError where a state is not
    finite.
    """
    last = model.config.num_blocks - 1
    readout = Readout(model.readout_matrix(last))
    names = [(kind, exit) for kind in kinds for exit in range(last)]
    parts: list[np.ndarray] = []
    bar = tqdm(total=len(windows), desc="read the exits", unit="window", disable=None, leave=False)
    with bar:
        for rows in torch.arange(len(windows)).split(BATCH):
            states = model(windows.tokens[rows].to(device))
            _require_finite(model, states)
            inputs = [kinds[kind](exit, states[exit]).flatten(0, -2) for kind, exit in names]
            inputs.append(model.readout_input(last, states[last]).flatten(0, 1))
            targets = windows.targets[rows].flatten().to(device)
            parts.append(_statistics(inputs, readout, targets))
            bar.update(len(rows))
    read = np.concatenate(parts, axis=2)  # (3, readouts, N)
    group = np.repeat(windows.group, windows.tokens.shape[1])
    out = {}
    for number, kind in enumerate(kinds):
        exits = [*range(number * last, (number + 1) * last), len(names)]
        loss, argmax, divergence = read[:, exits]
        out[kind] = Readings(loss, argmax.astype(np.int64), divergence, group)
    return out


def read_cached(states: States, rows: np.ndarray, group: np.ndarray) -> Readings:
    """The exits' readings as they were collected, of the tokens in the mask ``rows``; ``group`` is theirs."""
    exits = range(states.num_exits)
    return Readings(
        loss=np.stack([states.column(f"loss_{exit}")[rows] for exit in exits]),
        argmax=np.stack([states.column(f"argmax_{exit}")[rows] for exit in exits]),
        divergence=np.stack([states.divergence(exit)[rows] for exit in exits]),
        group=group,
    )


@torch.no_grad()
def read_cached_raw(states: States, model: Blockwise, rows: np.ndarray, stored: Readings) -> Readings:
    """The stored states of the tokens in ``rows``, read out through the last exit's norm and head.

    One shard of all exits is in memory at a time. Full depth is as it was ``stored``.
    """
    last = states.num_exits - 1
    matrix = model.readout_matrix(last)
    readout, parts, start, read = Readout(matrix), [], 0, 0
    targets = torch.from_numpy(states.column("target")[rows]).long().to(matrix.device)
    for shards in zip(*(states.hidden_shards(exit) for exit in range(states.num_exits))):
        keep = torch.from_numpy(rows[start : start + len(shards[0])])
        start, count = start + len(keep), int(keep.sum())
        if count:
            inputs = [model.readout_input(last, shard[keep].float().to(matrix.device)) for shard in shards]
            parts.append(_statistics(inputs, readout, targets[read : read + count]))
            read += count
    loss, argmax, divergence = np.concatenate(parts, axis=2)
    argmax = argmax.astype(np.int64)
    loss[-1], argmax[-1] = stored.loss[-1], stored.argmax[-1]
    return Readings(loss, argmax, divergence, stored.group)


def _statistics(inputs: list[Tensor], readout: Readout, targets: Tensor) -> np.ndarray:
    """Loss, argmax and divergence from the last of readout inputs (N, D): (3, readouts, N) in float64."""
    read = token_statistics(inputs, [readout] * len(inputs), targets)
    read[-1]["divergence"] = torch.zeros_like(read[-1]["loss"])
    return np.stack(
        [
            torch.stack([of_exit[name] for of_exit in read]).double().cpu().numpy()
            for name in ("loss", "argmax", "divergence")
        ]
    )


def _require_finite(model: Blockwise, states: list[Tensor]) -> None:
    layers = 0
    for exit, part in enumerate(states):
        layers += model.config.block_layers[exit]
        if not torch.isfinite(part).all():
            raise UserError(
                f"the hidden states after layer {layers} are not finite numbers: the model cannot run this "
                "text in fp32; give other --text or another --model"
            )
