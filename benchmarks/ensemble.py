"""Training one small model per random seed.

All seeds together are held against one by one, and two processes against two threads.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.measure import Row, in_rounds, in_turn, median_ratio
from offramp.models.native import BlockwiseLM, ModelConfig
from offramp.systems.ensemble import AS_PUBLISHED, Ensemble, fit
from offramp.systems.objectives import named
from studies.common.workers import run_arms

SEEDS, VOCABULARY, WINDOW, BATCH = (0, 1, 2, 3, 4), 97, 64, 16
"""As in the studies of the report character-systems."""
LAYERS = (1, 4)
UPDATES, PAIRS = 6, 5
ARMS, ARM_UPDATES, ARM_PAIRS = 2, 40, 5
"""Of the comparison of processes with threads.

Updates are enough that starting a process weighs what it does in a study.
"""


def run() -> Iterator[Row]:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # of a process that trains an arm
        for layers in LAYERS:
            together, one_by_one = in_turn(
                partial(train_together, layers), partial(train_one_by_one, layers), PAIRS
            )
            yield Row(
                f"ensemble_{layers}_layer{'s' if layers > 1 else ''}",
                median_ratio(one_by_one, together),
                "x speed",
                None,
                f"one seed after the other, one thread; {len(SEEDS)} seeds of {layers} layers of width 64, "
                f"batches of {BATCH} x {WINDOW}",
            )
    finally:
        torch.set_num_threads(threads)
    yield processes(threads)


def build(layers: int) -> BlockwiseLM:
    """A model of so many blocks of one layer."""
    return BlockwiseLM(ModelConfig(VOCABULARY, WINDOW, 64, 4, 256, (1,) * layers, norm="post", tied=False))


def batches(members: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Random tokens and targets (M, B, T) without end."""
    generator = torch.Generator().manual_seed(0)
    while True:
        drawn = torch.randint(VOCABULARY, (members, BATCH, WINDOW + 1), generator=generator)
        yield drawn[..., :-1], drawn[..., 1:]


def train_together(layers: int, updates: int = UPDATES) -> None:
    """Train the models of all seeds as one batch of models."""
    ensemble = Ensemble(lambda seed: build(layers), SEEDS)
    fit(
        ensemble,
        batches(len(SEEDS)),
        named("final", layers),
        lambda members: torch.zeros(len(members)),
        looks=[updates],
    )


def train_one_by_one(layers: int, updates: int = UPDATES) -> None:
    """What a plain loop over seeds does."""
    objective = named("final", layers)
    for seed in SEEDS:
        torch.manual_seed(seed)
        model = build(layers)
        optimiser = torch.optim.AdamW(
            model.parameters(), AS_PUBLISHED.learning_rate, weight_decay=0.01, fused=True
        )
        for _, (tokens, targets) in zip(range(updates), batches(1)):
            optimiser.zero_grad(set_to_none=True)
            objective.loss(model, tokens[0], targets[0], ())[0].backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), AS_PUBLISHED.clip_norm)
            optimiser.step()


def processes(threads: int) -> Row:
    """All that a study does at a time: several arms of several seeds, the start of the processes included."""
    layers = LAYERS[-1]

    def by_threads() -> None:
        torch.set_num_threads(threads)
        for _ in range(ARMS):
            train_one_by_one(layers, ARM_UPDATES)

    def by_processes() -> None:
        run_arms(train_together, [(layers, ARM_UPDATES)] * ARMS, processes=threads)

    with_processes, with_threads = in_rounds((by_processes, by_threads), ARM_PAIRS)
    torch.set_num_threads(threads)
    return Row(
        "ensemble_processes",
        median_ratio(with_threads, with_processes),
        "x speed",
        ">= 1",
        f"arm after arm and seed after seed with {threads} threads; {ARMS} arms of {len(SEEDS)} seeds, "
        f"{layers} layers, {ARM_UPDATES} updates, {threads} processes of one thread",
    )
