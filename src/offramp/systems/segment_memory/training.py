"""Training and evaluation of models with memory over windows in reading order (``corpus.streams``).

What a window reads is decided between windows, never inside one:

    reset           an empty memory
    carry           what earlier windows of its own document wrote; windows must be in order
    foreign         what the windows of another row wrote, the control: as much text, but not its own
    carry_shuffled  whatever the row read last, of shuffled windows: the report's mistake

Shapes: S models, N steps, R rows, T positions.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from offramp.errors import UserError
from offramp.systems.ensemble import Ensemble, Optimisation, clip_each, optimiser_of
from offramp.systems.objectives import cross_entropy
from offramp.systems.segment_memory.memory import Memory
from offramp.systems.segment_memory.model import Carried, InfiniLM, Memories, segments
from offramp.systems.segment_memory.streams import Streams

MODES = ("reset", "carry", "foreign", "carry_shuffled")


def require_mode(mode: str, streams: Streams) -> None:
    """Raises UserError for an unknown mode, and for one that carries over windows which are not in order."""
    if mode not in MODES:
        raise UserError(f"memory = {mode!r} is unknown; use one of {', '.join(MODES)}")
    if mode in ("carry", "foreign"):
        streams.require_order()


class Window(NamedTuple):
    """One step of streams, for every model."""

    tokens: Tensor
    """(S, R, T)"""
    targets: Tensor
    """(S, R, T)"""
    begins: Tensor
    """(S, R)"""


def windows_of(streams: list[Streams]) -> Iterator[Window]:
    """The steps of one pass over streams of the same size, one per model."""
    for step in range(len(streams[0].tokens)):
        yield Window(*(torch.stack([getattr(one, name)[step] for one in streams]) for name in Window._fields))


class Reader:
    """Each row's own memory, and what its next window may read of it."""

    def __init__(self, ensemble: Ensemble, rows: int, mode: str):
        self.mode = mode
        empty = cast(InfiniLM, ensemble.member(0)).empty_memory(rows)
        self.empty: Memories = tree_map(lambda part: part.expand(len(ensemble), *part.shape), empty)
        self.memories = self.empty
        """What every row has written, of all its windows or of those since its document began."""

    def read(self, begins: Tensor) -> Memories:
        """Memory (S, R, ...) for windows of which ``begins`` (S, R) start a document."""
        if self.mode == "reset":
            return self.empty
        if self.mode != "carry_shuffled":
            self.memories = tuple(memory.keep(~begins) for memory in self.memories)
        if self.mode == "foreign":
            return tree_map(lambda part: part.roll(1, dims=1), self.memories)
        return self.memories

    def wrote(self, given: Memories, after: Memories) -> None:
        """Keep what a window wrote, ``after`` minus ``given``, in its row's own memory."""
        if self.mode != "reset":
            self.memories = tuple(
                Memory(*(before + new - old for before, new, old in zip(*parts)))
                for parts in zip(self.memories, after, given)
            )


def _loss(
    model: nn.Module, tokens: Tensor, targets: Tensor, memory: Memories, carried: Carried | tuple[()]
) -> tuple[Tensor, Carried]:
    logits, carried = model(tokens, memory, carried or None)
    return cross_entropy(logits, targets), tree_map(Tensor.detach, carried)


def stream_updates(
    ensemble: Ensemble,
    passes: Callable[[int], list[Streams]],
    mode: str,
    *,
    segments: int,
    how: Optimisation,
) -> Callable[[int], None]:
    """Training as a step for ``fit_members``: the next window of every model's streams, an update per segment
    of it.

    ``passes(k)`` gives every model's streams for its pass k over the text; memories are empty at the start of
    each pass. The steps raise UserError as ``require_mode`` does.
    """
    optimiser = optimiser_of(ensemble, how)
    weights = list(ensemble.trainable().values())

    def windows() -> Iterator[tuple[Window, Reader]]:
        for number in itertools.count():
            streams = passes(number)
            for one in streams:
                require_mode(mode, one)
            reader = Reader(ensemble, streams[0].tokens.shape[1], mode)
            yield from ((window, reader) for window in windows_of(streams))

    read = windows()

    def step(number: int) -> None:
        window, reader = next(read)
        memory = reader.read(window.begins)
        carried: Carried | tuple[()] = ()
        for _ in range(segments):
            optimiser.zero_grad(set_to_none=True)
            losses, carried = ensemble(_loss, window.tokens, window.targets, memory, carried)
            losses.sum().backward()
            clip_each([weight.grad for weight in weights if weight.grad is not None], how.clip_norm)
            optimiser.step()
        reader.wrote(memory, cast(Carried, carried).memory)

    return step


@torch.no_grad()
def streams_nll(ensemble: Ensemble, streams: Streams, mode: str, count: int) -> Tensor:
    """Mean NLL (S,) in nats over all windows, each read in ``count`` segments; raises UserError as
    ``require_mode`` does."""
    require_mode(mode, streams)

    def total(model: nn.Module, tokens: Tensor, targets: Tensor, memory: Memories) -> tuple[Tensor, Memories]:
        *_, (logits, carried) = segments(model, tokens, memory, count)
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"), carried.memory

    reader = Reader(ensemble, streams.tokens.shape[1], mode)
    sums = torch.zeros(len(ensemble), dtype=torch.float64)
    for window in windows_of([streams] * len(ensemble)):
        memory = reader.read(window.begins)
        nll, after = ensemble(total, window.tokens, window.targets, memory)
        reader.wrote(memory, after)
        sums += nll.double()
    return sums / streams.targets.numel()
