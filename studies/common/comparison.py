"""Arms of a study held against each other: at equal updates and at equal training FLOPs, differences paired by seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from offramp.models.native import BlockwiseLM, ModelConfig
from offramp.systems.ensemble import Ensemble, batch_flops
from offramp.systems.initial_weights import truncated_normal
from offramp.systems.objectives import Objective
from studies.common.characters import BATCH_SIZE, WINDOW, Characters
from studies.common.curves import panels_figure
from studies.common.training import CorrectedRun, Limits

WIDTH, HEADS, FFN_WIDTH = 64, 4, 256
"""Of every model of seed 001, but for one of 48."""


@dataclass
class Compared:
    """What one arm came to under the corrected protocol; lists over seeds."""

    nll: list[float]
    """On test text in nats, at equal updates."""
    flops_nll: list[float]
    """At equal FLOPs in training."""
    passes: list[float]
    """Over the training text, until the best look at equal updates; of the head, where features are frozen."""
    parameters: int
    curves: list[dict[float, float]]
    more: list[dict[str, float]] = field(default_factory=list)
    """What else was measured, by seed: names without the size and the arm."""


def transformer(layers: int, vocab_size: int) -> BlockwiseLM:
    """The seed's model with a block per layer and the weights of experiments 1 to 4: 128 V + 65,664 L parameters."""
    model = BlockwiseLM(
        ModelConfig(vocab_size, WINDOW, WIDTH, HEADS, FFN_WIDTH, (1,) * layers, norm="post", tied=False)
    )
    truncated_normal(model, WIDTH**-0.5)
    nn.init.trunc_normal_(model.heads[0], std=WIDTH**-0.5)
    return model


def parameters(ensemble: Ensemble) -> int:
    """Of one model, those included that no loss reaches."""
    return sum(weight[0].numel() for weight in ensemble.weights.values())


def flops_per_batch(build: Callable[[int], nn.Module], objective: Objective, data: Characters) -> int:
    """FLOPs of the matrix products that one model spends on a batch of training."""
    return batch_flops(
        Ensemble(build, [0]), objective, *(part[:BATCH_SIZE] for part in data.windows("train"))
    )


def limits(
    build: Callable[[int], nn.Module],
    objective: Objective,
    data: Characters,
    updates: int,
    reference: tuple[Callable[[int], nn.Module], Objective],
) -> Limits:
    """Those of an arm: ``updates``, and the FLOPs of the ``reference`` arm in as many."""
    other, its = reference
    flops = updates / its.segments * flops_per_batch(other, its, data)
    return Limits.of(updates, flops, objective, flops_per_batch(build, objective, data))


def compared(run: CorrectedRun, limits: Limits) -> Compared:
    """A training within both of its limits; leaves the weights of equal updates in its ensemble."""
    flops_nll = run.test_nll(limits.flops)
    nll = run.test_nll(limits.updates)
    passes = [batches / run.batches_per_pass for batches in run.choose(limits.updates)]
    return Compared(nll, flops_nll, passes, parameters(run.ensemble), run.curves())


def differences(nll: Mapping[str, float], pairs: Sequence[tuple[str, str]]) -> dict[str, float]:
    """``diff.a_minus_b`` in nats for the pairs of arms that there are."""
    return {
        f"diff.{one}_minus_{other}": nll[one] - nll[other] for one, other in pairs if {one, other} <= set(nll)
    }


def gains(nll: Mapping[str, float], reference: str) -> dict[str, float]:
    """``gain.a``: by which share the perplexity of a is below that of ``reference``."""
    if reference not in nll:
        return {}
    return {
        f"gain.{arm}": 1 - math.exp(value - nll[reference]) for arm, value in nll.items() if arm != reference
    }


def published_values(
    found: Sequence[dict[str, float]], arms: Sequence[str], derive: Callable[[dict[str, float]], dict]
) -> dict:
    """The values of all arms and what follows from their perplexities."""
    values = {name: value for arm in found for name, value in arm.items()}
    return values | derive({arm: math.log(values[f"ppl.{arm}"]) for arm in arms})


def corrected_values(
    found: Mapping[str, Mapping[str, Compared]],
    seeds: int,
    derive: Callable[[dict[str, float]], dict[str, float]],
) -> list[dict[str, float]]:
    """One dict per seed of everything, by size and arm; ``derive`` gets perplexities' logarithms by arm."""
    return [
        {
            f"{size}.{name}": value
            for size, arms in found.items()
            for name, value in _of_seed(arms, seed, derive).items()
        }
        for seed in range(seeds)
    ]


def _of_seed(
    arms: Mapping[str, Compared], seed: int, derive: Callable[[dict[str, float]], dict[str, float]]
) -> dict[str, float]:
    row: dict[str, float] = {}
    for prefix, lists in (
        ("", {arm: one.nll for arm, one in arms.items()}),
        ("flops.", {arm: one.flops_nll for arm, one in arms.items()}),
    ):
        nll = {arm: values[seed] for arm, values in lists.items()}
        row |= {f"{prefix}ppl.{arm}": math.exp(value) for arm, value in nll.items()}
        row |= {f"{prefix}{name}": value for name, value in derive(nll).items()}
    for arm, one in arms.items():
        row |= {f"epoch.{arm}": one.passes[seed], f"parameters.{arm}": one.parameters}
        row |= {f"{name}.{arm}": value for name, value in (one.more[seed] if one.more else {}).items()}
    return row


def learning_curves(found: Mapping[str, Mapping[str, Compared]]) -> dict[str, Any]:
    """The figure of a study whose conclusion is which arm learns better."""
    panels = {
        f"{size} characters": {arm: one.curves for arm, one in arms.items()} for size, arms in found.items()
    }
    return panels_figure(
        "Perplexity of calibration text by update", panels, "text", "updates", "perplexity", log=True
    )
