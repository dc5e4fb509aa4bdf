"""Controls on the same tokens, which give a routing result its meaning: fixed depths, random exits, oracles.

At given exit shares, what a signal reaches lies between a floor and two ceilings:

* random exits, the floor: an expectation over draws, never one draw (``random_exits``);
* the divergence oracle, the ceiling that can be attained: it knows how far full depth's prediction of every
  token lies from the exit's, KL(full || exit). If full depth is calibrated, that is the expected gain of
  going on, given everything but the next token, and no signal can know more;
* the gain oracle, the ceiling of one who knows the next token, which no signal does.

``headroom`` is a signal's share of the way from the floor to the gain oracle, ``attained`` that to the
divergence oracle.

Shapes: N tokens, K exits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from offramp.corpus.windows import TokenWindows
from offramp.exits.assignment import exits_of_least
from offramp.models.blockwise import Blockwise
from offramp.params import Routing as RoutingParams
from offramp.results.routing import Controls, FixedDepth, Quality
from offramp.results.shape import Interval, exit_key
from offramp.routing.cost import executed_flops, full_depth_flops, layer_saving
from offramp.routing.executor import Executor, Work
from offramp.routing.measures import perplexity, quality
from offramp.routing.policies import exits_by_share
from offramp.routing.split import (
    CachedSplit,
    FirstBlock,
    RoutedSplit,
    run_split,
    spread_windows,
    token_rows,
)
from offramp.states.resampling import GroupSums, interval
from offramp.states.store import States
from offramp.vocabulary import DIVERGENCE_ORACLE, GAIN_ORACLE, LOSS_ORACLE, RANDOM, SIGNAL

ORACLES = (LOSS_ORACLE, DIVERGENCE_ORACLE, GAIN_ORACLE)


@dataclass(frozen=True)
class Share:
    """A signal's share of the way from random exits to an oracle, None where the oracle is not ahead of
    random exits or there is nothing to choose, with its 95 % bootstrap interval over documents."""

    value: float | None
    interval: Interval | None


@dataclass(frozen=True)
class Comparison:
    """A signal beside its controls, and how far it gets from the floor to both ceilings."""

    controls: Controls
    headroom: Share
    """Of the way to the gain oracle."""
    attained: Share
    """Of the way to the divergence oracle."""
    random_minus_signal_nll: Interval | None
    """Interval of the nats per token that the signal is ahead of random exits."""
    tokens: int
    """Tokens of the control windows."""


@dataclass(frozen=True)
class RandomExits:
    """What as many tokens leaving at random are predicted like, in expectation: (N,) float64 each."""

    loss: np.ndarray
    correct: np.ndarray
    """Probability that the prediction is the target."""
    agrees: np.ndarray
    """Probability that the prediction is that of full depth."""
    run: RoutedSplit
    """One draw of them, executed."""

    def quality(self, last: int) -> Quality:
        """Of all tokens; ``last`` is full depth's exit."""
        return Quality(
            ppl=perplexity(self.loss),
            accuracy=float(self.correct.mean()),
            agreement=float(self.agrees.mean()),
            shallow_ratio=float((self.run.exit < last).mean()),
        )


class ControlWindows:
    """Evenly spaced test windows on which signals and controls are executed at the same exit shares."""

    def __init__(
        self, executor: Executor, windows: TokenWindows, states: States, settings: RoutingParams
    ) -> None:
        self.chosen: Tensor = spread_windows(len(windows), settings.control_windows)
        self.rows = token_rows(self.chosen, windows.window)
        self.cached = CachedSplit.of(states, self.rows)
        self.free = self.cached.position >= settings.keep_first
        self._executor, self._windows, self._settings = executor, windows, settings
        self._first = FirstBlock(executor)

    @property
    def last(self) -> int:
        return self.cached.last

    def run(self, exits: np.ndarray, name: str) -> RoutedSplit:
        """Execute given exits (N,); ``name`` is what the progress bar says."""
        return run_split(
            self._executor,
            self._windows,
            self.chosen,
            batch_size=self._settings.batch_size,
            exits=exits,
            name=name,
            first=self._first,
        )

    def oracle_exits(self, name: str, counts: Sequence[int]) -> np.ndarray:
        """The exits (N,) that an oracle gives the tokens where ``counts[k]`` leave after block k < K-1.

        The divergence oracle makes the summed KL(full || exit) as small as these counts allow, the gain
        oracle the summed loss; the loss oracle lets go, exit by exit, where the loss is least: what knowing
        difficulty alone would buy.
        """
        if name == LOSS_ORACLE:
            return exits_by_share(-np.stack(self.cached.loss[:-1]), list(counts), self.free)
        values = {GAIN_ORACLE: self.cached.loss, DIVERGENCE_ORACLE: self.cached.divergence}[name]
        return exits_of_least(np.stack(values), counts, self.free)

    def random_exits(self, counts: Sequence[int], name: str = RANDOM) -> RandomExits:
        """The expectation over all draws in which ``counts[k]`` tokens leave after block k < K-1.

        What the exits say as if none had left is known of all tokens, so its expectation is closed form.
        What others' leaving adds to it (state propagation) needs a pass: it is that of one draw, executed,
        in which every window has its own. On the default run the standard deviation of this estimate over
        draws is 0.00008 nats; that of a mean of 20 executed draws would be 0.0003, that of one 0.0014.
        """
        cached, free = self.cached, self.free
        draw = np.random.default_rng(self._settings.seed).random((self.last, len(free)))
        run = self.run(exits_by_share(draw, list(counts), free), name)
        shares = np.array([*counts, free.sum() - sum(counts)]) / max(1, free.sum())

        def expected(at_exit: Sequence[np.ndarray], executed: np.ndarray) -> np.ndarray:
            values = np.stack(at_exit).astype(np.float64)
            mean = np.where(free, shares @ values, values[-1])
            return mean + executed - np.take_along_axis(values, run.exit[None], axis=0)[0]

        full = cached.argmax[self.last]
        return RandomExits(
            loss=expected(cached.loss, run.loss),
            correct=expected(
                [argmax == cached.target for argmax in cached.argmax], run.argmax == cached.target
            ),
            agrees=expected([argmax == full for argmax in cached.argmax], run.argmax == full),
            run=run,
        )

    def quality(self, run: RoutedSplit) -> Quality:
        """Of tokens that took the exits of ``run``."""
        cached = self.cached
        return quality(run.loss, run.argmax, cached.target, cached.argmax[self.last], run.exit < self.last)

    def shares(
        self, losses: Mapping[str, np.ndarray], counts: Sequence[int], names: Sequence[str]
    ) -> tuple[dict[str, Share], dict[str, Share], Interval | None]:
        """``headroom`` and ``attained`` of ``names`` at exit ``counts``, from the losses (N,) of them, of
        random exits and of both oracles; last the interval of random minus the first one's NLL."""
        draws = GroupSums(self.cached.document, losses).resample(
            self._settings.bootstrap, self._settings.seed
        )
        means = {name: float(loss.mean(dtype=np.float64)) for name, loss in losses.items()}
        nothing_to_choose = max([*counts, len(self.free) - sum(counts)]) == len(self.free)

        def share(name: str, oracle: str) -> Share:
            available = means[RANDOM] - means[oracle]
            if nothing_to_choose or available <= 0:
                return Share(None, None)
            resampled = (draws[RANDOM] - draws[name]) / (draws[RANDOM] - draws[oracle])
            return Share((means[RANDOM] - means[name]) / available, interval(resampled))

        return (
            {name: share(name, GAIN_ORACLE) for name in names},
            {name: share(name, DIVERGENCE_ORACLE) for name in names},
            interval(draws[RANDOM] - draws[names[0]]),
        )


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
    control = ControlWindows(executor, windows, states, settings)
    rows, last = control.rows, control.last
    signal = RoutedSplit(
        routed.exit[rows], routed.loss[rows], routed.argmax[rows], routed.confidence[rows], routed.work
    )
    counts = [int((signal.exit == exit).sum()) for exit in range(last)]
    runs = {SIGNAL: signal} | {
        name: control.run(control.oracle_exits(name, counts), name) for name in ORACLES
    }
    floor = control.random_exits(counts)
    losses = {name: run.loss for name, run in runs.items()} | {RANDOM: floor.loss}
    headroom, attained, ahead = control.shares(losses, counts, [SIGNAL])
    fixed = fixed_depths(executor.model, CachedSplit.of(states), windows.window)
    return Comparison(
        controls=Controls(
            full=fixed[last],
            random=floor.quality(last),
            **{exit_key(exit): depth for exit, depth in enumerate(fixed[:last])},
            **{name: control.quality(run) for name, run in runs.items()},
        ),
        headroom=headroom[SIGNAL],
        attained=attained[SIGNAL],
        random_minus_signal_nll=ahead,
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
