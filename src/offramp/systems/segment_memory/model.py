"""Character models with an Infini-attention memory before or inside a transformer or an HRM.

    input     e' = MemoryAttention(Embed(x)), without residual path or norm, feeds the core
    hidden    every layer of the core is a MemoryLayer
    gated     every layer of the core reads x + GatedMemory(x), as the report has it in its HRM
    none      no memory: the control

The core is a stack of post-norm layers, or the layers of an HRM (``systems.hierarchical``). A window may be
read in several segments (deep supervision): each of them reads the memory of *earlier windows*, which its own
text joins only when the window is done. The models of the report ``character-systems`` instead let a segment
read what the segment before it had written, that is keys and values of all positions of its own window,
targets included: a leak, here ``reads="own_window"``.

Shapes: B sequences, T positions, n states, D width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from offramp.errors import UserError
from offramp.nn.layers import TransformerLayer, require_heads, rotary_table
from offramp.systems.hierarchical import HierarchicalConfig, Hierarchy, States
from offramp.systems.initial_weights import truncated_normal
from offramp.systems.segment_memory.memory import (
    GatedMemory,
    Memory,
    MemoryAttention,
    MemoryLayer,
    empty_memory,
)

PLACES = ("none", "input", "hidden", "gated")
READS = ("earlier_windows", "own_window")

Memories = tuple[Memory, ...]
"""One per memory of the model."""


class Carried(NamedTuple):
    """What a segment leaves behind."""

    states: States
    """For the next segment of the same window; empty for a stack of layers."""
    memory: Memories
    """With this window added, for the next window."""


@dataclass(frozen=True)
class InfiniConfig:
    """Sizes of a model, and where its memory is.

    Raises UserError for an unknown place or way of reading, and for heads that do not divide the width.
    """

    vocab_size: int
    window: int = 64
    width: int = 64
    heads: int = 4
    ffn_width: int = 256
    place: str = "input"
    """Where the memory is: one of PLACES."""
    reads: str = "earlier_windows"
    """What a segment reads: one of READS."""
    hrm: str | None = None
    """Variant of the HRM core; None is a stack of layers."""
    layers: int = 1
    """How many the stack has."""
    periods: tuple[int, ...] = (1, 2)
    """Of the HRM's layers."""

    def __post_init__(self) -> None:
        for name, value, known in (("place", self.place, PLACES), ("reads", self.reads, READS)):
            if value not in known:
                raise UserError(f"{name} = {value!r} is unknown; use one of {', '.join(known)}")
        require_heads(self.width, self.heads)

    @property
    def num_layers(self) -> int:
        """Layers of the core."""
        return self.layers if self.hrm is None else len(self.periods)

    def hierarchy(self) -> HierarchicalConfig:
        """The configuration of the HRM core."""
        return HierarchicalConfig(
            self.vocab_size,
            self.window,
            self.width,
            self.heads,
            self.ffn_width,
            self.hrm or "v2",
            self.periods,
        )


class InfiniLM(nn.Module):
    """Embedding, memory, core, untied head without bias."""

    cos: Tensor
    sin: Tensor
    """Rotary tables (window, R / 2), R the dimensions of a head."""

    def __init__(self, config: InfiniConfig):
        super().__init__()
        self.config = config
        width, heads = config.width, config.heads
        self.embedding = nn.Embedding(config.vocab_size, width)
        layer = MemoryLayer if config.place == "hidden" else TransformerLayer
        self.layers = nn.ModuleList(
            layer(width, heads, config.ffn_width, "post") for _ in range(config.num_layers)
        )
        self.head = nn.Linear(width, config.vocab_size, bias=False)
        self.memory = nn.ModuleList()  # memories of MemoryLayers are the layers' own
        if config.place == "input":
            self.memory.append(MemoryAttention(width, heads))
        if config.place == "gated":
            self.memory.extend(GatedMemory(width, heads) for _ in self.layers)
        if config.hrm is not None:
            # it counts in the report's sizes, but it is in none of its losses
            self.halt = nn.Linear(width, 2, bias=False).requires_grad_(False)
        truncated_normal(self, 1 / math.sqrt(width))
        self.hierarchy = None if config.hrm is None else Hierarchy(config.hierarchy())
        cos, sin = rotary_table(config.window, width // heads)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def empty_memory(self, batch: int) -> Memories:
        """The memories of ``batch`` sequences of which nothing has been read yet."""
        count = {"none": 0, "input": 1}.get(self.config.place, self.config.num_layers)
        return tuple(
            empty_memory(batch, self.config.heads, self.config.width // self.config.heads)
            for _ in range(count)
        )

    def forward(
        self, tokens: Tensor, memory: Memories, carried: Carried | None = None
    ) -> tuple[Tensor, Carried]:
        """One segment: logits (B, T, V) of a window of tokens (B, T), after ``memory`` of earlier windows.

        ``carried`` is what the segment before it left, None in the first. ``memory`` is the same in all
        segments of a window.
        """
        if carried is not None and self.config.reads == "own_window":
            memory = carried.memory
        written = list(memory)
        embedded = self.embedding(tokens)
        if self.config.place == "input":
            embedded, written[0] = self.memory[0](embedded, memory[0])
        turns = self.cos[: tokens.shape[1]], self.sin[: tokens.shape[1]]

        def layer(index: int, x: Tensor) -> Tensor:
            if self.config.place == "hidden":
                x, written[index] = self.layers[index](x, *turns, memory[index])
                return x
            if self.config.place == "gated":
                x, written[index] = self.memory[index](x, memory[index])
            return self.layers[index](x, *turns)

        if self.hierarchy is not None:
            states = self.hierarchy(embedded, () if carried is None else carried.states, layer)
            embedded = states[-1]
        else:
            for index in range(self.config.layers):
                embedded = layer(index, embedded)
            states = ()
        return self.head(embedded), Carried(states, tuple(written))


def segments(
    call: Callable[..., tuple[Tensor, Carried]],
    tokens: Tensor,
    memory: Memories,
    count: int,
) -> Iterator[tuple[Tensor, Carried]]:
    """Logits and what is carried after each of ``count`` segments of one window; ``call`` is the model or
    stands for it."""
    carried = None
    for _ in range(count):
        logits, carried = call(tokens, memory, carried)
        yield logits, carried
