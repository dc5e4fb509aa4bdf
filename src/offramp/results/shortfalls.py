"""Where routing does not pay: what a result is warned of wherever it is shown.

One rule over the values of metrics/routing.json, for the page's title, the terminal and MLflow alike.
"""

from __future__ import annotations

from typing import NamedTuple

from offramp.results.routing import FixedDepth, Routing

EQUAL = 1e-6
"""Relative difference up to which perplexities are equal: of the same tokens and exits, computed twice."""
FULL = "full depth"


class Shortfall(NamedTuple):
    """Something simpler that does as well."""

    short: str
    """A clause for a title."""
    sentence: str
    """The numbers that it rests on."""


def shortfalls(routing: Routing) -> list[Shortfall]:
    """Every reason for which routing does not pay; none where it does, or where there is no early exit.

    * A fixed depth, full depth included, needs no more FLOPs and has no higher perplexity.
    * At equal exit shares the signal is not shown to beat random exits: the interval of ``headroom`` reaches
      down to 0 or below. Where headroom is undefined, that of random minus signal NLL decides; where
      nothing varies so that there is no interval, the value. Where one exit takes every token there is
      nothing to choose, and the fixed depths tell it all.
    """
    return [*_fixed_depth(routing), *_chance(routing)] if routing.controls.fixed else []


def _fixed_depth(routing: Routing) -> list[Shortfall]:
    controls = routing.controls
    depths = {f"exit {exit}": depth for exit, depth in enumerate(controls.fixed)} | {FULL: controls.full}
    better = {name: depth for name, depth in depths.items() if _does_as_well(depth, routing)}
    if not better:
        return []
    name = min(better, key=lambda name: better[name].ppl)
    depth, ahead = better[name], better[name].ppl < routing.ppl * (1 - EQUAL)
    every = FULL if name == FULL else f"every token leaving at {name}"
    return [
        Shortfall(
            f"{'worse' if ahead else 'no better'} than {every}",
            f"{every[0].upper()}{every[1:]} has perplexity {depth.ppl:.2f} and saves {depth.flop_saving:.1%} "
            f"of the FLOPs; routing has {routing.ppl:.2f} and saves {routing.flop_saving:.1%}.",
        )
    ]


def _does_as_well(depth: FixedDepth, routing: Routing) -> bool:
    return depth.flop_saving >= routing.flop_saving and depth.ppl <= routing.ppl * (1 + EQUAL)


def _chance(routing: Routing) -> list[Shortfall]:
    if max(routing.exit_fraction.values()) == 1:
        return []
    value, bounds, scale = routing.headroom, routing.interval.headroom, "headroom"
    if value is None:
        bounds, scale = routing.interval.random_minus_signal_nll, "random minus signal NLL"
    if bounds is None:
        bounds = [value, value] if value is not None else None
    if bounds is None or bounds[0] > 0:
        return []
    low, high = bounds
    short = "worse than random exits" if high < 0 else "not shown to beat random exits"
    controls = routing.controls
    return [
        Shortfall(
            f"{short} of equal shares",
            f"With as many tokens leaving at random, perplexity on the control tokens is "
            f"{controls.random.ppl:.2f}, by the signal {controls.signal.ppl:.2f}; {scale} "
            f"[{low:.4f}, {high:.4f}].",
        )
    ]
