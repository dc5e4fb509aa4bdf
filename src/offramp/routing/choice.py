"""From ``threshold`` in the parameters to an exit policy: numbers, or a rule that finds them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from offramp.exits.store import Exits
from offramp.models.blockwise import Blockwise
from offramp.params import Exits as ExitParams
from offramp.params import Routing as RoutingParams
from offramp.results.routing import HeldOutPromise, HeldOutRise
from offramp.routing.cost import exit_costs
from offramp.routing.policies import PricePolicy, Scorer, ThresholdPolicy, auto_thresholds
from offramp.routing.quality import Calibration, QualitySearch
from offramp.routing.thresholds import NOBODY, HeldOut, budget_thresholds, risk_thresholds


@dataclass(frozen=True)
class Chosen:
    """The policy, and the rule that chose it where that was not a number."""

    policy: ThresholdPolicy
    budget: float | None = None
    price: float | None = None
    promise: HeldOutPromise | None = None
    quality: HeldOutRise | None = None

    @property
    def bought(self) -> dict[str, float]:
        """The budget or price in force, by its name in metrics/routing.json."""
        return {
            name: value
            for name, value in (("budget", self.budget), ("price", self.price))
            if value is not None
        }


def choose_policy(
    threshold: float | list[float] | str,
    exits: Exits,
    model: Blockwise,
    *,
    window: int,
    signals: ExitParams,
    settings: RoutingParams,
    device: torch.device,
    calibration: Calibration | None = None,
) -> Chosen:
    """The policy for ``threshold``: a number, one per exit, auto, quality, risk, budget or price.

    What risk promises is about the tokens that leave, see ``routing.thresholds``. Quality runs the
    ``calibration`` split, see ``routing.quality``; without it ValueError. UserError where a budget cannot be
    met or a promise has too few held-out sequences.
    """
    signal, first = signals.confidence, settings.first_exit
    scorer = Scorer(exits, signal, device)
    costs = np.array(
        exit_costs(model, window, scorer.reads_out, scorer.flops_per_token, first=first, kv=settings.kv)
    )
    if threshold == "price":
        policy = PricePolicy(
            model, scorer, settings.price, costs.tolist(), first=first, keep_first=settings.keep_first
        )
        return Chosen(policy, price=settings.price)

    def held_out(part: str) -> HeldOut:
        return HeldOut(**exits.held_out(signal, part, settings.keep_first)).after(first)

    def acting_on(thresholds: list[float]) -> ThresholdPolicy:
        return ThresholdPolicy(
            model,
            scorer,
            [NOBODY] * first + thresholds,
            first=first,
            decay=settings.decay,
            keep_first=settings.keep_first,
        )

    if threshold == "auto":
        confidence = held_out("select").confidence
        return Chosen(acting_on(auto_thresholds(confidence, settings.auto_exit_ratio)))
    if threshold == "budget":
        kept = settings.keep_first / window
        within = budget_thresholds(held_out("select"), costs[first:], settings.budget, kept)
        return Chosen(acting_on(within), budget=settings.budget)
    if threshold == "quality":
        if calibration is None:
            raise ValueError("threshold quality is found by running calibration text, and there is none")
        thresholds, rise = QualitySearch(calibration, exits, scorer, costs, settings).choose()
        return Chosen(acting_on(thresholds[first:]), quality=rise)
    if threshold == "risk":
        wanted = signals.risk
        choice = risk_thresholds(
            held_out("select"),
            held_out("guarantee"),
            costs[first:],
            measure=wanted.measure,
            tolerance=wanted.tolerance,
            delta=wanted.delta,
        )
        promise = HeldOutPromise(
            measure=wanted.measure,
            tolerance=wanted.tolerance,
            delta=wanted.delta,
            sequences=choice.sequences,
            tested=choice.tested,
            passed=choice.passed,
            held_out_risk=choice.risk,
            p_value=choice.p_value,
        )
        return Chosen(acting_on(choice.thresholds), promise=promise)
    if isinstance(threshold, list):
        return Chosen(acting_on(threshold[first:]))
    return Chosen(acting_on([float(threshold)] * (len(costs) - 1 - first)))
