"""The context-vector recurrence against its bare matrix-vector products.

The parallel cache of contexts is held against the recurrence.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from benchmarks.measure import Row, added_memory, in_turn, median_ratio, rounds
from offramp.systems.context_vectors.model import ContextVectorConfig, ContextVectorLM
from offramp.systems.context_vectors.recurrence import Recurrence, parallel, previous_contexts, sequential
from offramp.systems.context_vectors.store import write_contexts

VOCABULARY, LAYERS, PAIRS, PROCESSES = 1024, 6, 7, 5
SIZES = {"published": (768, 1000), "study": (48, 4000)}
"""Width and steps: as many as documents have tokens, for the matrices are put together once per stream."""
CACHED = (48, 20_000)
"""Width, and tokens of one document: what the parallel pass and the recurrence each make a cache of."""


def run() -> Iterator[Row]:
    for name in SIZES:
        for token_input in ("all", "first") if name == "published" else ("all",):
            yield recurrence_row(name, token_input)
    yield parallel_cache()
    yield memory()


def recurrence_row(name: str, token_input: str) -> Row:
    """The recurrence of a size against its bare products; ``token_input`` says which layers see the token."""
    width, steps = SIZES[name]
    net, (tokens, begins) = model(width, token_input), stream(steps)
    recurrence, x = Recurrence(net.context_block), torch.zeros(steps, 1, width)
    times, bare = in_turn(
        lambda: list(sequential(net, tokens, begins)), lambda: products(recurrence, x), PAIRS
    )
    return Row(
        f"context_step_over_products_{name}_{token_input}",
        median_ratio(times, bare),
        "x time",
        "<= 1.25" if name == "published" else None,
        "the bare matrix products: of the tokens at once, of the context one token after the other; width "
        f"{width}, "
        f"{LAYERS} layers, {steps} steps of one document",
    )


def model(width: int, token_input: str = "all") -> ContextVectorLM:
    """An untrained model, the same every time."""
    torch.manual_seed(0)
    return ContextVectorLM(ContextVectorConfig(VOCABULARY, width, width, LAYERS, token_input))


def stream(tokens: int) -> tuple[Tensor, Tensor]:
    """So many random tokens (T,) of one document, and where documents begin (T,)."""
    begins = torch.zeros(tokens, dtype=torch.bool)
    begins[0] = True
    return torch.randint(VOCABULARY, (tokens,), generator=torch.Generator().manual_seed(0)), begins


def products(recurrence: Recurrence, x: Tensor) -> None:
    """The matrix products that no recurrence can do without, into buffers.

    Those of tokens x (T, 1, E) are computed all at once, then step by step each layer's matrix times a
    context.
    """
    works = [
        (torch.zeros(1, len(step.matrix)), step.matrix, torch.empty(1, step.matrix.shape[1]))
        for step in recurrence.steps
    ]
    with torch.inference_mode():
        for step in recurrence.steps:
            if step.token_weight is not None:
                torch.mm(x[:, 0], step.token_weight.T)
        for _ in range(len(x)):
            for context, matrix, out in works:
                torch.mm(context, matrix, out=out)


def parallel_cache() -> Row:
    """Writing a cache of contexts by one parallel pass, against the recurrence."""
    width, length = CACHED
    net, (tokens, begins) = model(width), stream(length)
    contexts = torch.cat([outputs[-1] for outputs in sequential(net, tokens, begins)])
    with TemporaryDirectory() as folder:

        def cache(parts: Iterator[list[Tensor]], name: str) -> None:
            write_contexts(Path(folder, name), tokens, begins, parts, {})

        by_pass, by_step = in_turn(
            lambda: cache(parallel(net, tokens, previous_contexts(contexts, begins)), "parallel"),
            lambda: cache(sequential(net, tokens, begins), "sequential"),
            PAIRS,
        )
    return Row(
        "context_parallel_cache",
        median_ratio(by_step, by_pass),
        "x speed",
        ">= 10",
        f"the recurrence; {length} tokens of one document, width {width}, {LAYERS} layers, written to disk "
        "by both",
    )


def memory() -> Row:
    """What four times the tokens add to the memory of a parallel cache."""
    width, length = CACHED

    def added(tokens: int) -> float:
        return added_memory(
            "from pathlib import Path; from tempfile import TemporaryDirectory\n"
            "from benchmarks.context_vectors import model, stream\n"
            "from offramp.systems.context_vectors.recurrence import parallel\n"
            "from offramp.systems.context_vectors.store import write_contexts\n"
            f"net, folder = model({width}), TemporaryDirectory()\n"
            f"def cache(tokens):\n    given = stream(tokens)\n"
            f"    states = parallel(net, given[0], torch.zeros(tokens, {width}))\n"
            "    write_contexts(Path(folder.name, 'c'), *given, states, {})\n"
            "cache(100)\n",
            f"cache({tokens})",
        )

    small, large = zip(*((added(10 * length), added(40 * length)) for _ in range(rounds(PROCESSES))))
    contexts = 30 * length * width * 4 / 2**20  # of one layer, float32: what phase 1 holds anyway
    return Row(
        "context_cache_memory_4x_tokens",
        median_ratio([mib - contexts for mib in large], small),
        "x added memory",
        "<= 1.25",
        f"a cache of a quarter of the tokens ({statistics.median(small):.0f} MiB added), without the "
        "contexts of one layer that are its input",
    )
