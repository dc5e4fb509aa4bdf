"""The threshold curve: every signal and control, executed on test windows at the same exit fractions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from offramp.corpus.windows import TokenWindows
from offramp.exits.store import Exits
from offramp.models.blockwise import Blockwise
from offramp.params import Routing as RoutingParams
from offramp.results.routing import CurvePoint, Quality
from offramp.routing.controls import ORACLES, ControlWindows, Share
from offramp.routing.cost import executed_flops, full_depth_flops, layer_saving
from offramp.routing.executor import Executor
from offramp.routing.policies import Scorer, exits_by_share
from offramp.routing.split import RoutedSplit
from offramp.states.store import States
from offramp.vocabulary import FIXED, RANDOM


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
    control = ControlWindows(executor, windows, states, settings)
    model, last, free = executor.model, control.last, control.free
    scores = {name: scorer.on_cached(states)[:, control.rows] for name, scorer in scorers.items()}

    def point(name: str, fraction: float, run: RoutedSplit, scorer: Scorer | None = None) -> CurvePoint:
        return _point(name, fraction, run, control.quality(run), model, windows.window, scorer)

    curve = []
    for exit in range(last + 1):
        run = control.run(np.full(len(free), exit), f"curve, exit {exit}")
        curve.append(point(FIXED, float(exit < last), run))
    for fraction in settings.curve_fractions:
        counts, waiting = [], int(free.sum())
        for _ in range(last):
            counts.append(round(fraction * waiting))
            waiting -= counts[-1]
        points, losses = [], {}
        for name, scorer in scorers.items():
            run = control.run(exits_by_share(scores[name], counts, free), f"curve, {name} {fraction}")
            _charge(run, scorer, last)
            least = float(scores[name][0][run.exit == 0].min()) if counts[0] else None
            at = point(name, fraction, run, scorer)
            points.append(at.model_copy(update={"threshold": least}))
            losses[name] = run.loss
        floor = control.random_exits(counts, f"curve, {RANDOM} {fraction}")
        at = point(RANDOM, fraction, floor.run)
        points.append(at.model_copy(update=floor.quality(last).to_json()))
        losses[RANDOM] = floor.loss
        for name in ORACLES:
            run = control.run(control.oracle_exits(name, counts), f"curve, {name} {fraction}")
            points.append(point(name, fraction, run))
            losses[name] = run.loss
        headroom, attained, _ = control.shares(losses, counts, list(losses))
        curve += [
            at.model_copy(
                update={
                    "headroom": headroom[at.signal].value,
                    "attained": attained[at.signal].value,
                    "attained_low": _bound(attained[at.signal], 0),
                    "attained_high": _bound(attained[at.signal], 1),
                }
            )
            for at in points
        ]
    return curve


def _bound(share: Share, side: int) -> float | None:
    return share.interval[side] if share.interval else None


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
    predicted: Quality,
    model: Blockwise,
    window: int,
    scorer: Scorer | None = None,
) -> CurvePoint:
    """A run as a point of the curve; without ``scorer`` nothing was decided."""
    if scorer is None:
        routed.work.decided_tokens = 0
    flops = executed_flops(model, routed.work, scorer.flops_per_token if scorer else 0)
    return CurvePoint(
        signal=name,
        fraction=fraction,
        threshold=None,
        **predicted.to_json(),
        layer_saving=layer_saving(model, routed.work),
        flop_saving=1 - flops / full_depth_flops(model, len(routed.exit), window),
        headroom=None,
        attained=None,
        attained_low=None,
        attained_high=None,
        tokens=len(routed.exit),
    )
