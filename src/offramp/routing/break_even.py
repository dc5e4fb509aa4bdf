"""Break-even of one exit: the share of tokens that must leave there before asking pays.

Asking is a readout of every token where the signal is one of the softmax, and else a classifier of the state;
predicted in FLOPs and measured in seconds, each with that exit alone in use.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from offramp.exits.classifier import ExitClassifier
from offramp.models.blockwise import Blockwise
from offramp.routing.cost import executed_flops, full_depth_flops
from offramp.routing.executor import Arrivals, Decision, Executor, Policy, Work
from offramp.routing.timing import pass_seconds
from offramp.states.statistics import Readout, token_statistics
from offramp.vocabulary import LOOKS_AT, READOUT, STATE

LEAVING = 0.5
"""Share of the tokens that leave where the saving is timed."""


@dataclass(frozen=True)
class TimedAsking:
    """What asking at one exit costs and leaving there saves by the clock, as shares of the plain pass."""

    asking_cost: float
    saving: float
    """Of LEAVING of the tokens leaving, asking included."""
    break_even: float | None
    """None where leaving saves no time, or where it would take more tokens than there are."""


@dataclass(frozen=True)
class TimedExits:
    """What was timed of all early exits."""

    exits: list[dict[str, TimedAsking]]
    """Per early exit, by kind."""
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
    executor: Executor, batches: Sequence[tuple[Tensor, Tensor]], hidden: list[int]
) -> TimedExits:
    """The share in seconds.

    Every batch (tokens and targets (B, T)) is run plainly, with every token asked and none leaving, and with
    LEAVING of them, at random, leaving, in turn. ``asking_cost`` and ``saving`` are what the second run takes
    more and the third less than the plain one, as shares of it, medians over batches; ``break_even`` follows
    from the straight line through both, and is 0 where asking took no time.
    """
    model, device = executor.model, batches[0][0].device
    early, count = range(model.config.num_blocks - 1), batches[0][0].numel()
    classifier = ExitClassifier(model.config.width, hidden).to(device).eval()
    chosen = torch.rand(count, generator=torch.Generator().manual_seed(0)).to(device) < LEAVING
    plain = None
    policies: dict[tuple[int, str, bool] | None, Policy | None] = {plain: None}
    policies |= {
        (exit, kind, some): AskAtOneExit(model, exit, kind, classifier, chosen & some)
        for exit in early
        for kind in LOOKS_AT
        for some in (False, True)
    }
    names = list(policies)
    ratios: dict[tuple[int, str, bool] | None, list[float]] = {name: [] for name in policies}
    plain_seconds: list[float] = []
    executor.run(*batches[0], None)  # warm up
    for (
        policy
    ) in policies.values():  # on one sequence: memory that is set up once does not grow with the batch
        executor.run(batches[0][0][:1], batches[0][1][:1], policy)
    bar = tqdm(batches, desc="time asking", unit="batch", disable=None, leave=False)
    for number, batch in enumerate(bar):
        turn = number % len(names)
        seconds = {
            name: pass_seconds(executor, batch, policies[name]) for name in (*names[turn:], *names[:turn])
        }
        plain_seconds.append(seconds[plain])
        for name in names:
            ratios[name].append(seconds[name] / seconds[plain])
    middle = {name: statistics.median(values) for name, values in ratios.items()}
    exits = [
        {kind: line_through(middle[exit, kind, False], middle[exit, kind, True]) for kind in LOOKS_AT}
        for exit in early
    ]
    return TimedExits(exits, plain_seconds)


def line_through(asking: float, leaving: float) -> TimedAsking:
    """Where a line from ``asking`` (nobody leaves) to ``leaving`` (LEAVING does) crosses 1.

    Both are shares of the seconds of the plain pass.
    """
    share = max(0.0, LEAVING * (asking - 1) / (asking - leaving)) if leaving < asking else None
    return TimedAsking(
        asking_cost=asking - 1,
        saving=1 - leaving,
        break_even=share if share is None or share <= 1 else None,
    )
