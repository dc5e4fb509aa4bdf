"""Break-even of one exit: the share of tokens that must leave there before asking pays.

Asking is a readout of every token where the signal is one of the softmax, and else a classifier of the state;
predicted in FLOPs and measured in seconds, each with that exit alone in use.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from offramp.exits.classifier import ExitClassifier
from offramp.models.blockwise import Blockwise
from offramp.results.shape import Interval
from offramp.routing.cost import executed_flops, full_depth_flops
from offramp.routing.executor import Arrivals, Decision, Executor, Policy, Work
from offramp.routing.timing import pass_seconds
from offramp.states.statistics import Readout, token_statistics
from offramp.vocabulary import READOUT, STATE

LEAVING = 0.5
"""Share of the tokens that leave where the saving is timed."""
LEVEL = 0.95
"""Of intervals over batches; six batches are the fewest that have one."""

Clock = Literal["shown", "never", "inconclusive"]
"""What the clock says of a share; see ``results.suitability.BreakEven``."""


class Median(NamedTuple):
    """A median over batches with its 95 % interval, which is None for too few of them."""

    value: float
    interval: Interval | None

    def above(self, bound: float) -> bool:
        """Whether the whole interval is."""
        return self.interval is not None and self.interval[0] > bound

    def below(self, bound: float) -> bool:
        return self.interval is not None and self.interval[1] < bound


@dataclass(frozen=True)
class TimedAsking:
    """What asking at one exit costs by the clock, and the share of tokens that must leave for it to pay."""

    asking_cost: Median
    """As a share of the plain pass."""
    clock: Clock
    share: Median | None
    """Where the clock shows it."""


@dataclass(frozen=True)
class TimedExits:
    """What was timed of all early exits."""

    exits: list[TimedAsking]
    """Per early exit."""
    plain: list[float]
    """Seconds of the plain pass over every batch: how far they differ is how far the clock can be trusted."""


def flops_break_even(
    model: Blockwise, window: int, exit: int, kind: str, *, classifier_flops: int, kv: str = "propagate"
) -> float | None:
    """The share in FLOPs; None where a token that leaves costs more than one that goes to full depth unasked.

    ``kind`` is one of LOOKS_AT; a signal of the state costs ``classifier_flops``. Counts as
    ``routing.cost.exit_costs``: layers and attention rows of ``window`` keys, keys and values that tokens
    that left owe later layers (with ``kv`` recompute the least), and readouts.
    """
    run = sum(model.config.block_layers[: exit + 1])
    decision = classifier_flops if kind == STATE else 0
    in_exit_layers = [0] * exit + [int(model.exit_layer(exit) is not None)]
    read = executed_flops(
        model,
        Work(
            attention_pairs=in_exit_layers[-1] * window,
            readouts=[0] * exit + [1],
            exit_layer_tokens=in_exit_layers,
            exit_key_value_tokens=in_exit_layers,
        ),
    )
    plain = full_depth_flops(model, 1, window)
    asking = decision + (read if kind == READOUT else 0)
    owed = sum(model.config.block_layers) if kv == "propagate" else run
    work = Work([1] * run, [1] * owed, run * window, decided_tokens=1)
    leaving = executed_flops(model, work, decision) + read
    return asking / (plain + asking - leaving) if leaving <= plain else None


class AskAtOneExit(Policy):
    """Asks at one exit what a signal of a kind would ask, and lets go whom it was told to."""

    def __init__(self, model: Blockwise, exit: int, kind: str, classifier: ExitClassifier, leaves: Tensor):
        """``leaves`` (B * T,): bool, whether each token of the batch leaves."""
        self.model, self.first, self.classifier, self.leaves = model, exit, classifier, leaves
        self.reads_out, self.flops_per_token = kind == READOUT, classifier.flops if kind == STATE else 0
        self.readout = Readout(model.readout_matrix(exit))

    def decide(self, arrivals: Arrivals) -> Decision:
        leaves = self.leaves[arrivals.index]
        if arrivals.exit != self.first:
            return Decision(torch.zeros_like(leaves))
        if not self.reads_out:
            return Decision(leaves, self.classifier(arrivals.states.float()))
        assert arrivals.read is not None, "the policy says that it reads it"
        normed = self.model.readout_input(arrivals.exit, arrivals.read)
        looked_up = token_statistics([normed], [self.readout], arrivals.targets)[0]
        return Decision(leaves, looked_up["max_prob"], looked_up["loss"], looked_up["argmax"])


def seconds_break_even(
    executor: Executor, batches: Sequence[tuple[Tensor, Tensor]], hidden: list[int], kind: str
) -> TimedExits:
    """The share in seconds, for a signal of a ``kind``.

    Every batch (tokens and targets (B, T)) is run plainly, with every token asked and none leaving, and with
    LEAVING of them, at random, leaving, in turn; what follows from it is ``judged``.
    """
    model, device = executor.model, batches[0][0].device
    early, count = range(model.config.num_blocks - 1), batches[0][0].numel()
    classifier = ExitClassifier(model.config.width, hidden).to(device).eval()
    chosen = torch.rand(count, generator=torch.Generator().manual_seed(0)).to(device) < LEAVING
    plain = None
    policies: dict[tuple[int, bool] | None, Policy | None] = {plain: None}
    policies |= {
        (exit, some): AskAtOneExit(model, exit, kind, classifier, chosen & some)
        for exit in early
        for some in (False, True)
    }
    names = list(policies)
    seconds: dict[tuple[int, bool] | None, list[float]] = {name: [] for name in policies}
    executor.run(*batches[0], None)  # warm up
    for (
        policy
    ) in policies.values():  # on one sequence: memory that is set up once does not grow with the batch
        executor.run(batches[0][0][:1], batches[0][1][:1], policy)
    bar = tqdm(batches, desc="time asking", unit="batch", disable=None, leave=False)
    for number, batch in enumerate(bar):
        turn = number % len(names)
        for name in (*names[turn:], *names[:turn]):
            seconds[name].append(pass_seconds(executor, batch, policies[name]))
    ratios = {name: np.array(times) / np.array(seconds[plain]) for name, times in seconds.items()}
    return TimedExits([judged(ratios[exit, False], ratios[exit, True]) for exit in early], seconds[plain])


def judged(asked: np.ndarray, leaving: np.ndarray) -> TimedAsking:
    """What the seconds of R batches say, as shares (R,) of those of the plain pass.

    ``asked`` are those of a pass in which nobody leaves, ``leaving`` those of one in which LEAVING does. The
    share is where the straight line through both crosses the plain pass. A cost of asking that is not shown
    to be above nothing is noise, of which nothing follows.
    """
    cost, saving = asked - 1, asked - leaving
    asking, saved = median(cost), median(saving)
    if saved.below(0):
        return TimedAsking(asking, "never", None)
    if not (asking.above(0) and saved.above(0)):
        return TimedAsking(asking, "inconclusive", None)
    share = median(LEAVING * cost / np.where(saving > 0, saving, np.nan))
    if share.below(1):
        return TimedAsking(asking, "shown", share)
    return TimedAsking(asking, "never" if share.above(1) else "inconclusive", None)


def median(values: np.ndarray) -> Median:
    """The median of independent values (R,), and the interval between two of them that holds that of all.

    It does so with a probability of at least LEVEL, whatever their distribution: of R values, as few as k lie
    below their median with the probability of as few heads in R tosses. Values that are not a number count
    as larger than all others.
    """
    rising, count = np.sort(np.nan_to_num(values, nan=np.inf)), len(values)
    tails = np.cumsum([math.comb(count, k) for k in range(count)]) / 2**count
    left_out = int((2 * tails <= 1 - LEVEL).sum())  # on either side
    bounds = [float(rising[left_out - 1]), float(rising[-left_out])] if left_out else None
    return Median(float(np.median(rising)), bounds)
