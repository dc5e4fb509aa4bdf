"""The threshold curve: every signal and control, executed on test windows at the same exit fractions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from offramp.corpus.windows import TokenWindows
from offramp.exits.store import Exits
from offramp.models.blockwise import Blockwise
from offramp.params import Routing as RoutingParams
from offramp.results.routing import CurvePoint
from offramp.routing.controls import control_scores
from offramp.routing.cost import executed_flops, full_depth_flops, layer_saving
from offramp.routing.executor import Executor
from offramp.routing.measures import quality
from offramp.routing.policies import Scorer, exits_by_share
from offramp.routing.split import CachedSplit, RoutedSplit, run_split, spread_windows, token_rows
from offramp.states.store import States
from offramp.vocabulary import CONTROLS, FIXED, GAIN_ORACLE, RANDOM


def all_scorers(exits: Exits, device: torch.device) -> dict[str, Scorer]:
    """A scorer for every signal that was calibrated."""
    return {name: Scorer(exits, name, device) for name in exits.config["signals"]}


def threshold_curve(
    executor: Executor,
    windows: TokenWindows,
    states: States,
    scorers: Mapping[str, Scorer],
    settings: RoutingParams,
) -> list[CurvePoint]:
    """Rows of threshold_curve.csv: every signal and control, executed at equal exit fractions.

    At every exit the given share of arriving tokens leaves (of those that may), picked by each signal's
    ranking of the control windows: this measures how well signals rank, not a threshold one could have set
    beforehand. Confidences come from cached states, exact for the first exit; for later ones they are those
    of tokens whose predecessors all stayed.
    """
    chosen = spread_windows(len(windows), settings.control_windows)
    rows = token_rows(chosen, windows.window)
    cached = CachedSplit.of(states, rows)
    last, free = cached.last, cached.position >= settings.keep_first
    scores = {name: scorer.on_cached(states)[:, rows] for name, scorer in scorers.items()}
    scores |= {name: control_scores(cached.loss, name, settings.seed) for name in CONTROLS}

    def run(exits: np.ndarray, name: str) -> RoutedSplit:
        return run_split(
            executor, windows, chosen, batch_size=settings.batch_size, exits=exits, name=f"curve, {name}"
        )

    curve = []
    for exit in range(last + 1):
        routed = run(np.full(len(rows), exit), f"exit {exit}")
        curve.append(_point(FIXED, float(exit < last), routed, cached, executor.model, windows.window))
    for fraction in settings.curve_fractions:
        counts, waiting = [], int(free.sum())
        for _ in range(last):
            counts.append(round(fraction * waiting))
            waiting -= counts[-1]
        points = []
        for name, score in scores.items():
            routed = run(exits_by_share(score, counts, free), f"{name} {fraction}")
            scorer = scorers.get(name)
            if scorer:
                _charge(routed, scorer, last)
            point = _point(name, fraction, routed, cached, executor.model, windows.window, scorer)
            if scorer and counts[0]:
                least = float(score[0][routed.exit == 0].min())
                point = point.model_copy(update={"threshold": least})
            points.append(point)
        nll = {point.signal: np.log(point.ppl) for point in points}
        available = nll[RANDOM] - nll[GAIN_ORACLE]
        curve += [
            point.model_copy(update={"headroom": float((nll[RANDOM] - nll[point.signal]) / available)})
            for point in points
        ]
    return curve


def _charge(routed: RoutedSplit, scorer: Scorer, last: int) -> None:
    """Count the readouts of all who arrive, where the signal needs them.

    The exits were laid down, but the signal has its price.
    """
    if scorer.reads_out:
        for exit in range(last):
            routed.work.count_readouts(exit, int((routed.exit > exit).sum()))


def _point(
    name: str,
    fraction: float,
    routed: RoutedSplit,
    cached: CachedSplit,
    model: Blockwise,
    window: int,
    scorer: Scorer | None = None,
) -> CurvePoint:
    """A run as a point of the curve; without ``scorer`` nothing was decided."""
    if scorer is None:
        routed.work.decided_tokens = 0
    flops = executed_flops(model, routed.work, scorer.flops_per_token if scorer else 0)
    predicted = quality(
        routed.loss, routed.argmax, cached.target, cached.argmax[cached.last], routed.exit < cached.last
    )
    return CurvePoint(
        signal=name,
        fraction=fraction,
        threshold=None,
        **predicted.to_json(),
        layer_saving=layer_saving(model, routed.work),
        flop_saving=1 - flops / full_depth_flops(model, len(cached.target), window),
        headroom=None,
    )
