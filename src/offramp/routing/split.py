"""Windows of a split: what is cached of their tokens, and one pass that routes them.

Shapes: N tokens, K exits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from offramp.corpus.windows import TokenWindows
from offramp.routing.executor import Executor, Policy, Work
from offramp.routing.policies import GivenExits
from offramp.states.store import States


@dataclass(frozen=True)
class CachedSplit:
    """Tokens of a ``states`` artifact, with what every exit says of them as if none had left before."""

    loss: list[np.ndarray]
    """Per exit (N,), in nats."""
    argmax: list[np.ndarray]
    """Per exit (N,)."""
    divergence: list[np.ndarray]
    """KL(full || exit) per exit (N,), in nats; 0 at full depth."""
    target: np.ndarray
    """(N,)"""
    document: np.ndarray
    """(N,)"""
    position: np.ndarray
    """(N,) in their windows."""

    @classmethod
    def of(cls, states: States, rows: np.ndarray | slice = slice(None)) -> CachedSplit:
        """All tokens, or those in ``rows`` of the token table."""
        exits = range(states.num_exits)
        return cls(
            loss=[states.column(f"loss_{exit}")[rows] for exit in exits],
            argmax=[states.column(f"argmax_{exit}")[rows] for exit in exits],
            divergence=[states.divergence(exit)[rows] for exit in exits],
            target=states.column("target")[rows],
            document=states.column("document")[rows],
            position=states.column("position")[rows],
        )

    @property
    def last(self) -> int:
        """The exit at full depth."""
        return len(self.loss) - 1


@dataclass(frozen=True)
class RoutedSplit:
    """Every token of the windows that were run, in order (N,) each, and the work it took."""

    exit: np.ndarray
    loss: np.ndarray
    argmax: np.ndarray
    confidence: np.ndarray
    work: Work


FIRST_BLOCK_BYTES = 2**28
"""States after the first block that are kept for further runs of the same windows: so much, and no more."""


class FirstBlock:
    """States after the first block of batches that are run several times: every run begins with the same.

    They are computed when a batch is run first and kept on its device, ``FIRST_BLOCK_BYTES`` of them; of the
    batches beyond that every run computes its own.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor, self._bytes = executor, 0
        self._kept: dict[int, Tensor] = {}

    def of(self, batch: int, tokens: Tensor) -> Tensor | None:
        """The states (B * T, D) of the batch of that number, tokens (B, T); None where there is no room."""
        if batch not in self._kept and self._bytes < FIRST_BLOCK_BYTES:
            self._kept[batch] = self._executor.first_block(tokens)
            self._bytes += self._kept[batch].nbytes
        return self._kept.get(batch)


def run_split(
    executor: Executor,
    windows: TokenWindows,
    indices: Tensor,
    *,
    batch_size: int,
    policy: Policy | None = None,
    exits: np.ndarray | None = None,
    name: str = "evaluate",
    first: FirstBlock | None = None,
) -> RoutedSplit:
    """Route the windows ``indices``; ``exits`` (N,) lays down every token's exit instead of a policy.

    ``name`` is what the progress bar says. ``first`` spares the first block where the same windows are run
    several times.
    """
    device = executor.device
    work, parts, start = Work(), [], 0
    for number, batch in enumerate(tqdm(indices.split(batch_size), desc=name, unit="batch", disable=None)):
        tokens, targets = (part.to(device) for part in windows.batch(batch))
        chosen = policy
        if exits is not None:
            chosen = GivenExits(torch.from_numpy(exits[start : start + tokens.numel()]).to(device))
            start += tokens.numel()
        after_first = first.of(number, tokens) if first else None
        parts.append(executor.run(tokens, targets, chosen, work, after_first=after_first))
    return RoutedSplit(
        exit=_joined([part.exit for part in parts]),
        loss=_joined([part.loss for part in parts]),
        argmax=_joined([part.argmax for part in parts]),
        confidence=_joined([part.confidence for part in parts]),
        work=work,
    )


def spread_windows(total: int, wanted: int) -> Tensor:
    """At most ``wanted`` evenly spaced window numbers."""
    return torch.linspace(0, total - 1, min(wanted, total)).long()


def token_rows(chosen: Tensor, window: int) -> np.ndarray:
    """Rows of the token table that belong to the chosen windows."""
    return (chosen.numpy()[:, None] * window + np.arange(window)).ravel()


def _joined(parts: list[Tensor]) -> np.ndarray:
    return torch.cat([part.flatten().cpu() for part in parts]).numpy()
