"""Controls on the same tokens, which give a routing result its meaning: fixed depths, random exits, oracles.

Shapes: N tokens, K exits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from offramp.corpus.windows import TokenWindows
from offramp.models.blockwise import Blockwise
from offramp.params import Routing as RoutingParams
from offramp.results.routing import Controls, FixedDepth
from offramp.results.shape import Interval, exit_key
from offramp.routing.cost import executed_flops, full_depth_flops, layer_saving
from offramp.routing.executor import Executor, Work
from offramp.routing.measures import quality
from offramp.routing.policies import exits_by_share
from offramp.routing.split import CachedSplit, RoutedSplit, run_split, spread_windows, token_rows
from offramp.states.resampling import GroupSums, interval
from offramp.states.store import States
from offramp.vocabulary import CONTROLS, GAIN_ORACLE, RANDOM, SIGNAL


@dataclass(frozen=True)
class Comparison:
    """A signal beside its controls, and how much of the way from random exits to the gain oracle it goes."""

    controls: Controls
    headroom: float | None
    """None where there is nothing to choose, or the oracle does no better than random exits."""
    headroom_interval: Interval | None
    random_minus_signal_nll: Interval | None
    """Interval of the nats per token that the signal is ahead of random exits."""
    tokens: int
    """Tokens of the control windows."""


def compare_with_controls(
    executor: Executor,
    windows: TokenWindows,
    states: States,
    routed: RoutedSplit,
    settings: RoutingParams,
) -> Comparison:
    """Fixed depths on all tokens; random exits and oracles executed on the control windows.

    There as many tokens leave at every exit as the signal lets go.
    """
    chosen = spread_windows(len(windows), settings.control_windows)
    rows = token_rows(chosen, windows.window)
    cached = CachedSplit.of(states, rows)
    last, free = cached.last, cached.position >= settings.keep_first
    counts = [int((routed.exit[rows] == exit).sum()) for exit in range(last)]
    runs = {SIGNAL: (routed.loss[rows], routed.argmax[rows], routed.exit[rows])}
    for name in CONTROLS:
        exits = exits_by_share(control_scores(cached.loss, name, settings.seed), counts, free)
        run = run_split(executor, windows, chosen, batch_size=settings.batch_size, exits=exits, name=name)
        runs[name] = (run.loss, run.argmax, run.exit)
    qualities = {
        name: quality(loss, argmax, cached.target, cached.argmax[last], exit < last)
        for name, (loss, argmax, exit) in runs.items()
    }
    fixed = fixed_depths(executor.model, CachedSplit.of(states), windows.window)
    losses = {name: loss for name, (loss, _, _) in runs.items()}
    draws = GroupSums(cached.document, losses).resample(settings.bootstrap, settings.seed)
    means = {name: loss.mean(dtype=np.float64) for name, loss in losses.items()}
    available = means[RANDOM] - means[GAIN_ORACLE]
    one_exit_takes_all = max(*counts, len(rows) - sum(counts)) == len(rows)
    defined = not one_exit_takes_all and available > 0
    return Comparison(
        controls=Controls(
            full=fixed[last],
            **{exit_key(exit): depth for exit, depth in enumerate(fixed[:last])},
            **qualities,
        ),
        headroom=float((means[RANDOM] - means[SIGNAL]) / available) if defined else None,
        headroom_interval=interval((draws[RANDOM] - draws[SIGNAL]) / (draws[RANDOM] - draws[GAIN_ORACLE]))
        if defined
        else None,
        random_minus_signal_nll=interval(draws[RANDOM] - draws[SIGNAL]),
        tokens=rows.size,
    )


def fixed_depths(model: Blockwise, cached: CachedSplit, window: int) -> list[FixedDepth]:
    """All tokens leaving at each exit in turn: what the exits say as if none had left, so nothing is run."""
    tokens = len(cached.target)
    whole = full_depth_flops(model, tokens, window)
    depths = []
    for exit, (loss, argmax) in enumerate(zip(cached.loss, cached.argmax)):
        layers = sum(model.config.block_layers[: exit + 1])
        in_exit_layers = [0] * exit + [tokens] if model.exit_layer(exit) else []
        work = Work(
            layer_tokens=[tokens] * layers,
            key_value_tokens=[tokens] * layers,
            attention_pairs=(layers + bool(in_exit_layers)) * tokens * window,
            readouts=[0] * exit + [tokens],
            tokens=tokens,
            exit_layer_tokens=in_exit_layers,
            exit_key_value_tokens=in_exit_layers,
        )
        predicted = quality(loss, argmax, cached.target, cached.argmax[cached.last], exit < cached.last)
        depths.append(
            FixedDepth(
                **predicted.to_json(),
                layer_saving=layer_saving(model, work),
                flop_saving=1 - executed_flops(model, work) / whole,
            )
        )
    return depths


def control_scores(losses: Sequence[np.ndarray], name: str, seed: int) -> np.ndarray:
    """Scores (K-1, N) by which a control picks who leaves: random, or an oracle that knows the target.

    losses: K arrays (N,). ``gain_oracle`` lets go where depth would gain least: the ceiling for two exits,
    and greedy, exit by exit, for more. ``loss_oracle`` lets go where the loss at the exit is least: what
    knowing difficulty alone would buy.
    """
    *early, full = losses
    if name == RANDOM:
        return np.random.default_rng(seed).random((len(early), len(full)))
    return np.stack([full - loss if name == GAIN_ORACLE else -loss for loss in early])
