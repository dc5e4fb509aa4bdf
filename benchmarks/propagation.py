"""What propagated keys and values cost SmolLM2 in quality.

Tokens leave at random, with and without the first token of a sequence among them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from benchmarks.inputs import prompts, smollm2
from benchmarks.measure import Estimate, Row
from offramp.routing.propagation import KEPT, LEAVING, propagation_cost

WINDOWS, LENGTH, BATCH = 32, 128, 8


def run() -> Iterator[Row]:
    lm = smollm2((10, 20), LENGTH)[1]
    text = torch.tensor(prompts(WINDOWS, LENGTH + 1))
    costs = propagation_cost(
        lm, [(rows[:, :-1].contiguous(), rows[:, 1:].contiguous()) for rows in text.split(BATCH)], draws=1000
    )
    for kv, rises in (("propagate", costs.propagate), ("drop", costs.drop)):
        for kept, cost in zip(KEPT, (rises.keep_first_0, rises.keep_first_1)):
            who = "any token" if not kept else "any token but the first of a sequence"
            yield Row(
                f"{kv}_smollm2_keep_first_{kept}",
                Estimate.within(cost.nll_rise, cost.interval, WINDOWS),
                "nats/token",
                None,
                f"true keys and values (routing.kv: recompute); {LEAVING:.0%} leave at random, {who}, half "
                f"each after 10 and 20 of 30 layers; {WINDOWS} addresses' first {LENGTH} tokens",
            )
