"""Stage evaluate: early exit on the test split -> routed, metrics/routing.json, metrics/timing.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from offramp.artifacts.artifact import create_artifact
from offramp.corpus.token_bytes import token_bytes
from offramp.corpus.tokenizer import open_tokenizer
from offramp.exits.store import Exits
from offramp.params import Declared
from offramp.results.routing import Intervals, PositionShare, ReliabilityBin, Routing
from offramp.results.shape import exit_key
from offramp.routing.choice import choose_policy
from offramp.routing.controls import compare_with_controls
from offramp.routing.measures import (
    kept_promise,
    measure_intervals,
    position_shares,
    reliability_bins,
    routed_measures,
)
from offramp.routing.split import CachedSplit, run_split
from offramp.routing.timing import time_routing
from pipeline._inputs import open_routing_inputs
from pipeline._stage import stage


def run(params: Declared, root: Path) -> None:
    inputs = open_routing_inputs(params, root)
    executor, windows, settings = inputs.executor, inputs.windows, params.routing
    chosen = choose_policy(
        params.threshold,
        Exits(inputs.exits),
        executor.model,
        window=windows.window,
        signals=params.exits,
        settings=settings,
        device=inputs.device,
    )
    policy, cached = chosen.policy, CachedSplit.of(inputs.states)
    confidence = policy.scorer.on_cached(inputs.states)
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
        bytes_of_token=token_bytes(open_tokenizer(inputs.data), inputs.data.meta["kind"]),
    )
    comparison = compare_with_controls(executor, windows, inputs.states, routed, settings)
    rule: dict[str, Any] = dict(chosen.bought)
    if chosen.promise:
        rule["risk"] = kept_promise(chosen.promise, routed, cached, settings)

    made_from = {
        "data": inputs.data,
        "lm": inputs.lm,
        "exits": inputs.exits,
        "states/test": inputs.states.artifact,
    }
    table = {
        name: inputs.states.column(name) for name in ("document", "sequence", "position", "token", "target")
    }
    table |= {name: getattr(routed, name) for name in ("exit", "confidence", "loss", "argmax")}
    with create_artifact(root / "routed", "routed", params.to_json(), made_from) as out:
        pq.write_table(pa.table(table), out.path / "tokens.parquet", compression="NONE")
    Routing(
        **measures.to_json(),
        **rule,
        confidence=params.exits.confidence,
        precision=inputs.states.precision,
        threshold={exit_key(exit): value for exit, value in enumerate(policy.thresholds)},
        inputs={name: artifact.digest for name, artifact in made_from.items()},
        controls=comparison.controls,
        control_tokens=comparison.tokens,
        headroom=comparison.headroom,
        interval=Intervals(
            **measure_intervals(routed, cached, confidence[0], settings),
            headroom=comparison.headroom_interval,
            random_minus_signal_nll=comparison.random_minus_signal_nll,
        ),
    ).write(root)
    ReliabilityBin.write(root, reliability_bins(routed, cached, confidence))
    PositionShare.write(root, position_shares(routed.exit, windows.window, cached.last))
    time_routing(executor, windows, policy, routed.exit, settings).write(root)


main = stage("evaluate", run, memory="routing.batch_size or window")

if __name__ == "__main__":
    main()
