"""The low-rank readout sweep: all ranks in one pass against one pass per rank, and its memory."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import Median, Row, added_memory, in_turn, median_ratio, rounds
from offramp.analysis.low_rank import approximate, logit_fidelity, rank_sweep
from offramp.states.statistics import Readout, predictions

TOKENS, VOCAB, WIDTH, RANKS = 4096, 8192, 64, (1, 2, 5, 10, 20, 32, 64)
"""Ranks and width of the report loss-prediction."""
VARIANTS = ("plain", "weighted_centred")
TEXTBOOK_TOKENS, PAIRS, PROCESSES = 1024, 5, 5
MOST_TOKENS, MOST_WORDS = 2**18, 69830
"""Of the passes whose memory is told, one for each."""


def run() -> Iterator[Row]:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(VOCAB, WIDTH, generator=generator) * 0.1
    fit, inputs = (torch.randn(TOKENS, WIDTH, generator=generator) + 0.5 for _ in range(2))
    targets = torch.randint(VOCAB, (TOKENS,), generator=generator)
    size = f"{len(VARIANTS)} variants, ranks {', '.join(map(str, RANKS))}, width {WIDTH}, vocabulary {VOCAB}"
    for name, rival, tokens, bar, against in (
        (
            "per_rank",
            one_pass_per_rank,
            TOKENS,
            None,
            "our fastest readout pass, run once for every variant and rank",
        ),
        (
            "textbook",
            textbook,
            TEXTBOOK_TOKENS,
            None,
            "full logits, softmax, top-2 and correlation for every variant and rank",
        ),
    ):
        arguments = (matrix, fit, inputs[:tokens], targets[:tokens])
        times, others = in_turn(
            partial(rank_sweep, *arguments, RANKS, VARIANTS), partial(rival, *arguments), PAIRS
        )
        yield Row(
            f"low_rank_sweep_over_{name}",
            median_ratio(others, times),
            "x speed",
            bar,
            f"{against}; {size}, {tokens} tokens",
        )
    yield memory()


def one_pass_per_rank(matrix: Tensor, fit: Tensor, inputs: Tensor, targets: Tensor) -> None:
    """The same figures from the fastest readout pass, run again for every variant and rank."""
    readout = Readout(matrix)
    predictions(inputs, readout, targets)
    for approximation in approximate(matrix, fit, VARIANTS).values():
        logit_fidelity(matrix, approximation, inputs, RANKS)
        for rank in RANKS:
            predictions(approximation.state(inputs, rank), readout, targets)


def textbook(matrix: Tensor, fit: Tensor, inputs: Tensor, targets: Tensor) -> None:
    """What the report loss-prediction computed, and the loss, from the logits of all tokens, rank by rank."""
    for approximation in approximate(matrix, fit, VARIANTS).values():
        for rank in RANKS:
            exact, logits = inputs @ matrix.T, approximation.state(inputs, rank) @ matrix.T
            torch.corrcoef(torch.stack([exact.flatten(), logits.flatten()]))
            (logits - exact).square().mean()
            top = logits.topk(2, dim=1).values
            (
                logits.softmax(1).amax(1),
                top[:, 0],
                top[:, 0] - logits.mean(1),
                top[:, 0] - top[:, 1],
                (logits.argmax(1) == exact.argmax(1)).float().mean(),
                logits.log_softmax(1).gather(1, targets.unsqueeze(1)),
            )


def memory() -> Row:
    """The memory that tokens and vocabulary cost, each at full size while the other is small."""

    def added(tokens: int, vocab: int) -> float:
        setup = (
            "from offramp.analysis.low_rank import rank_sweep\n"
            f"draw = lambda tokens: (torch.randn({vocab}, 64), torch.randn(256, 64), "
            f"torch.randn(tokens, 64), torch.randint({vocab}, (tokens,)))\n"
            f"rank_sweep(*draw(64), [1, 2]); arguments = draw({tokens})"
        )
        return added_memory(setup, f"rank_sweep(*arguments, {RANKS})")

    taken = [(added(MOST_TOKENS, 256), added(1024, MOST_WORDS)) for _ in range(rounds(PROCESSES))]
    tokens, words = np.median(taken, axis=0)
    return Row(
        "low_rank_sweep_memory",
        Median.of(sum(both) for both in taken),
        "MiB added",
        "<= 3072",
        f"the sum of {MOST_TOKENS} tokens x 256 entries ({tokens:.0f}) and 1024 tokens x {MOST_WORDS} "
        f"({words:.0f}); 4 variants, {len(RANKS)} ranks",
    )
