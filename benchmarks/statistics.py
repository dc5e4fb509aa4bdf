"""Token statistics against the bare matrix product, and against full logits with the textbook formulas."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from benchmarks.measure import Median, Row, added_memory, in_turn, median_ratio, rounds, seconds
from offramp.states.statistics import Readout, token_statistics

SIZES = {"words": (2048, 69830, 64), "default": (8192, 1024, 128)}
"""Tokens, vocabulary, width: the words of the report exit-labels, and the default model."""
PAIRS, TEXTBOOK_PAIRS, PROCESSES = 15, 7, 5
FULL = (2**17, 69830)
"""Tokens and vocabulary of the pass whose memory is told as it is."""
BLOCKS = ((128, 4096), (256, 4096), (256, 2048), (512, 1024), (512, 4096))


def run() -> Iterator[Row]:
    for name in SIZES:
        yield from speed(name)
    yield from memory()


def speed(name: str) -> Iterator[Row]:
    """The statistics at a size against the bare product, and against the textbook formulas."""
    tokens, vocab, width = SIZES[name]
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, width, generator=generator)
    matrix = torch.randn(vocab, width, generator=generator) * 0.1
    targets = torch.randint(vocab, (tokens,), generator=generator)
    readout = Readout(matrix)
    bare = fastest([blocked_product(hidden, matrix, *blocks) for blocks in BLOCKS])
    times, product = in_turn(lambda: token_statistics([hidden], [readout], targets), bare, PAIRS)
    yield Row(
        f"statistics_over_product_{name}",
        median_ratio(times, product),
        "x time",
        "<= 2.3",
        f"the bare blocked matrix product, {tokens} x {vocab}, width {width}, into one buffer, the fastest "
        f"of {len(BLOCKS)} block sizes",
    )
    hidden, targets = hidden[:2048], targets[:2048]
    times, plain = in_turn(
        lambda: token_statistics([hidden], [readout], targets),
        lambda: textbook(hidden, matrix, targets),
        TEXTBOOK_PAIRS,
    )
    yield Row(
        f"statistics_speedup_{name}",
        median_ratio(plain, times),
        "x speed",
        None,
        f"full logits, log-softmax, entropy and top-2 of {len(hidden)} tokens at once, {vocab} entries, "
        f"width {width}",
    )


def blocked_product(hidden: Tensor, matrix: Tensor, rows: int, columns: int) -> Callable[[], None]:
    """The product alone, block by block, each into the same buffer."""
    buffer = torch.empty(rows * columns)
    blocks = [block.T for block in matrix.split(columns)]

    def work() -> None:
        for part in hidden.split(rows):
            for block in blocks:
                torch.mm(part, block, out=buffer[: len(part) * block.shape[1]].view(len(part), -1))

    return work


def fastest(works: list[Callable[[], None]]) -> Callable[[], None]:
    """The fastest of them, each by the best of three runs."""
    for work in works:
        work()
    return min(works, key=lambda work: min(seconds(work) for _ in range(3)))


def textbook(hidden: Tensor, matrix: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """The statistics of token_statistics, from all logits at once."""
    logits = hidden @ matrix.T
    log_p = logits.log_softmax(1)
    p = log_p.exp()
    top = logits.topk(2, dim=1)
    loss = -log_p.gather(1, targets.unsqueeze(1)).squeeze(1)
    return {
        "max_prob": p.amax(1),
        "max_logit": top.values[:, 0],
        "mean_logit": logits.mean(1),
        "margin": top.values[:, 0] - top.values[:, 1],
        "entropy": -(p * log_p).sum(1),
        "argmax": top.indices[:, 0],
        "loss": loss,
        "correct_prob": torch.exp(-loss),
    }


def memory() -> Iterator[Row]:
    """What four times the tokens or the vocabulary add to memory, and the memory of a full-size pass."""

    def added(tokens: int, vocab: int) -> float:
        return added_memory(
            "from offramp.states.statistics import Readout, token_statistics\n"
            "warm = Readout(torch.randn(64, 64)); token_statistics([torch.randn(64, 64)], [warm])\n"
            f"hidden, readout = torch.randn({tokens}, 64), Readout(torch.randn({vocab}, 64))",
            "token_statistics([hidden], [readout])",
        )

    sizes = {"the smaller one": (8192, 16384), "tokens": (32768, 16384), "vocabulary": (8192, 65536)}
    # A few MiB, of which the allocator's habits are a part: several fresh processes of each size, in turn.
    taken = [{name: added(*size) for name, size in sizes.items()} for _ in range(rounds(PROCESSES))]
    mib = {name: [of[name] for of in taken] for name in sizes}
    small = mib.pop("the smaller one")
    for name, larger in mib.items():
        yield Row(
            f"statistics_memory_4x_{name}",
            median_ratio(larger, small),
            "x added memory",
            "<= 1.25",
            f"the same with a quarter of the {name} ({statistics.median(small):.0f} MiB added)",
        )
    tokens, vocab = FULL
    yield Row(
        "statistics_memory_full",
        Median.of(added(tokens, vocab) for _ in range(rounds(PROCESSES))),
        "MiB added",
        "<= 3072",
        f"{tokens} tokens x {vocab} entries, width 64, one real pass, results included",
    )
