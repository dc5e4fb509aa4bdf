"""From ``threshold`` in the parameters to an exit policy: numbers, or a rule that finds them on held-out text."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from offramp.exits.store import Exits
from offramp.models.blockwise import Blockwise
from offramp.routing.cost import exit_costs
from offramp.routing.policies import PricePolicy, Scorer, ThresholdPolicy, auto_thresholds
from offramp.routing.thresholds import NOBODY, HeldOut, budget_thresholds, risk_thresholds


@dataclass
class Chosen:
    """The policy, and what metrics/routing.json says of how it was chosen."""

    policy: ThresholdPolicy
    rule: dict[str, Any] = field(default_factory=dict)


def choose_policy(
    threshold: float | list[float] | str,
    exits: Exits,
    model: Blockwise,
    window: int,
    exit_settings: Any,
    settings: Any,
    device: torch.device,
) -> Chosen:
    """The policy for ``threshold``: a number, one per exit, auto, risk, budget or price.

    ``exit_settings`` and ``settings`` are the ``exits`` and ``routing`` sections of the parameters. UserError where a
    budget cannot be met or a promise has too few held-out sequences.
    """
    signal, first = exit_settings.confidence, settings.first_exit
    scorer = Scorer(exits, signal, device)
    costs = np.array(exit_costs(model, window, scorer.reads_out, scorer.flops_per_token, first, settings.kv))
    if threshold == "price":
        return Chosen(
            PricePolicy(model, scorer, settings.price, costs.tolist(), first, settings.keep_first),
            {"price": settings.price},
        )
    rule: dict[str, Any] = {}

    def held_out(part: str) -> HeldOut:
        return HeldOut(**exits.held_out(signal, part, settings.keep_first)).after(first)

    if threshold == "auto":
        thresholds = auto_thresholds(held_out("select").confidence, settings.auto_exit_ratio)
    elif threshold == "budget":
        thresholds = budget_thresholds(
            held_out("select"), costs[first:], settings.budget, settings.keep_first / window
        )
        rule = {"budget": settings.budget}
    elif threshold == "risk":
        select, guarantee = held_out("select"), held_out("guarantee")
        promise = exit_settings.risk
        found = risk_thresholds(
            select, guarantee, costs[first:], promise.measure, promise.tolerance, promise.delta
        )
        thresholds = found.thresholds
        rule = {
            "risk": {
                "measure": promise.measure,
                "tolerance": promise.tolerance,
                "delta": promise.delta,
                "sequences": found.sequences,
                "tested": found.tested,
                "passed": found.passed,
                "held_out_risk": found.risk,
                "p_value": found.p_value,
            }
        }
    else:
        thresholds = (
            threshold[first:] if isinstance(threshold, list) else [float(threshold)] * len(costs[first:-1])
        )
    return Chosen(
        ThresholdPolicy(
            model, scorer, [NOBODY] * first + thresholds, first, settings.decay, settings.keep_first
        ),
        rule,
    )
