"""Arms of a study held against each other: at equal updates and at equal training FLOPs, differences paired
by seed."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from offramp.models.native import BlockwiseLM, ModelConfig
from offramp.systems.ensemble import Ensemble, batch_flops
from offramp.systems.initial_weights import truncated_normal
from offramp.systems.objectives import Objective
from studies.common.characters import BATCH_SIZE, WINDOW, Characters
from studies.common.curves import panels_figure
from studies.common.study import Outcome
from studies.common.training import CorrectedRun, Limits, on_split

WIDTH, HEADS, FFN_WIDTH = 64, 4, 256
"""Of every model of the report character-systems, but for one of width 48."""

Derive = Callable[[dict[str, float]], dict[str, float]]
"""What follows from the losses in nats of all arms, by key."""


@dataclass
class Compared:
    """What one arm came to under the corrected protocol; lists over random seeds."""

    nll: list[float]
    """On test text in nats, at equal updates."""
    flops_nll: list[float]
    """At equal FLOPs in training."""
    passes: list[float]
    """Over the training text, until the best look at equal updates; of the head, where features are
    frozen."""
    parameters: int
    curves: list[dict[float, float]]
    more: list[dict[str, float]] = field(default_factory=list)
    """What else was measured, by random seed: names without the size and the arm."""


def transformer(layers: int, vocab_size: int) -> BlockwiseLM:
    """The report's model with a block per layer and the weights of experiments 1 to 4: 128 V + 65,664 L
    parameters."""
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


def passage_ppl(
    run: CorrectedRun, batches: int, test: Callable[[Ensemble], Tensor] | None = None
) -> list[dict[str, float]]:
    """``passage_ppl`` by random seed: perplexity of the calibration text at the best look within so many
    batches by the test text, so that the text which is reported chose nothing.

    At 20,000 characters the calibration text is the passage that the report reports on, which makes levels
    comparable: the next passage may be easier or harder. ``test``: mean NLL (S,) of the test text, where that
    is not read window by window. Changes the weights in the ensemble.
    """
    judge = test or on_split(run.objective, run.data, "test")
    seen = []
    for weights in run.weights[: bisect_right(run.looks, batches)]:
        run.ensemble.restore(weights)
        seen.append(judge(run.ensemble))
    chosen = torch.stack(seen).argmin(dim=0).tolist()
    return [
        {"passage_ppl": math.exp(min(run.calibration[look][member], 100.0))}
        for member, look in enumerate(chosen)
    ]


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


def published_outcome(by_arm: Mapping[str, dict[str, float]], derive: Derive) -> Outcome:
    """The values of all arms and what follows from their perplexities; no row without an arm."""
    values = {name: value for arm in by_arm.values() for name, value in arm.items()}
    derived = derive({arm: math.log(values[f"ppl.{arm}"]) for arm in by_arm})
    return Outcome([values | derived] if by_arm else [])


def corrected_outcome(by_place: Mapping[tuple[str, str], Compared], seeds: int, derive: Derive) -> Outcome:
    """Everything of so many random seeds, from what arms came to by size of the text and arm; no row without
    an arm."""
    sizes: dict[str, dict[str, Compared]] = {}
    for (size, arm), result in by_place.items():
        sizes.setdefault(size, {})[arm] = result
    if not sizes:
        return Outcome([])
    rows = [
        {
            f"{size}.{name}": value
            for size, arms in sizes.items()
            for name, value in _of_seed(arms, place, derive).items()
        }
        for place in range(seeds)
    ]
    return Outcome(rows, {"learning_curves": _learning_curves(sizes)})


def _of_seed(arms: Mapping[str, Compared], place: int, derive: Derive) -> dict[str, float]:
    row: dict[str, float] = {}
    for prefix, lists in (
        ("", {arm: one.nll for arm, one in arms.items()}),
        ("flops.", {arm: one.flops_nll for arm, one in arms.items()}),
    ):
        nll = {arm: values[place] for arm, values in lists.items()}
        row |= {f"{prefix}ppl.{arm}": math.exp(value) for arm, value in nll.items()}
        row |= {f"{prefix}{name}": value for name, value in derive(nll).items()}
    for arm, one in arms.items():
        row |= {f"epoch.{arm}": one.passes[place], f"parameters.{arm}": one.parameters}
        row |= {f"{name}.{arm}": value for name, value in (one.more[place] if one.more else {}).items()}
    return row


def _learning_curves(sizes: Mapping[str, Mapping[str, Compared]]) -> dict[str, Any]:
    """The figure of a study whose conclusion is which arm learns better."""
    panels = {
        f"{size} characters": {arm: one.curves for arm, one in arms.items()} for size, arms in sizes.items()
    }
    return panels_figure(
        "Perplexity of calibration text by update", panels, "text", "updates", "perplexity", log=True
    )
