"""A policy evaluated on the test split: every token routed once, beside its controls, and timed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from offramp.corpus.windows import TokenWindows
from offramp.params import Routing as RoutingParams
from offramp.results.routing import Intervals, Origin, PositionShare, ReliabilityBin, Routing, Timing
from offramp.results.shape import exit_key
from offramp.routing.choice import Chosen
from offramp.routing.controls import compare_with_controls
from offramp.routing.cost import exit_costs
from offramp.routing.executor import Executor
from offramp.routing.measures import (
    kept_promise,
    measure_intervals,
    position_shares,
    reliability_bins,
    routed_measures,
)
from offramp.routing.quality import checked
from offramp.routing.split import CachedSplit, RoutedSplit, run_split
from offramp.routing.timing import time_routing
from offramp.states.store import States


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation leaves behind."""

    routed: RoutedSplit
    """Every test token as it was routed."""
    results: Routing
    reliability: list[ReliabilityBin]
    positions: list[PositionShare]
    timing: Timing


def evaluate(
    executor: Executor,
    windows: TokenWindows,
    states: States,
    chosen: Chosen,
    settings: RoutingParams,
    *,
    signal: str,
    inputs: dict[str, str],
    bytes_of_token: np.ndarray,
    origin: Origin,
) -> Evaluation:
    """Route all ``windows`` of the test split by the chosen policy and measure what came of it.

    ``states`` are those of the same tokens without early exit, ``signal`` the name of the confidence,
    ``inputs`` the digests of what the results are of, ``bytes_of_token`` (V,) the bytes of text that each
    token stands for (see ``corpus.token_bytes``), and ``origin`` when and where this is measured.
    """
    policy, cached = chosen.policy, CachedSplit.of(states)
    confidence = policy.scorer.on_cached(states)
    routed = run_split(
        executor, windows, torch.arange(len(windows)), policy=policy, batch_size=settings.batch_size
    )
    measures = routed_measures(
        executor.model,
        routed,
        cached,
        confidence=confidence[0],
        decision_flops=policy.flops_per_token,
        window=windows.window,
        bytes_of_token=bytes_of_token,
    )
    costs = np.array(
        exit_costs(
            executor.model,
            windows.window,
            policy.scorer.reads_out,
            policy.flops_per_token,
            first=settings.first_exit,
            kv=settings.kv,
        )
    )
    token_flops = costs[routed.exit]
    comparison = compare_with_controls(executor, windows, states, routed, settings)
    rule: dict[str, Any] = dict(chosen.bought)
    if chosen.promise:
        rule["risk"] = kept_promise(chosen.promise, routed, cached, settings)
    intervals = measure_intervals(routed, cached, confidence[0], token_flops, measures.flop_saving, settings)
    if chosen.quality:
        rule["quality"] = checked(chosen.quality, measures, intervals["ppl_increase"])
    results = Routing(
        **measures.to_json(),
        **rule,
        confidence=signal,
        precision=states.precision,
        threshold={exit_key(exit): value for exit, value in enumerate(policy.thresholds)},
        inputs=inputs,
        controls=comparison.controls,
        token_flop_saving=1 - float(token_flops.mean()),
        control_tokens=comparison.tokens,
        headroom=comparison.headroom.value,
        attained=comparison.attained.value,
        interval=Intervals(
            **intervals,
            headroom=comparison.headroom.interval,
            attained=comparison.attained.interval,
            random_minus_signal_nll=comparison.random_minus_signal_nll,
        ),
    )
    return Evaluation(
        routed,
        results,
        reliability_bins(routed, cached, confidence),
        position_shares(routed.exit, windows.window, cached.last),
        time_routing(executor, windows, policy, routed.exit, settings, origin),
    )
