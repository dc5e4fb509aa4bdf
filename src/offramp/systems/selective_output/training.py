"""Training of the selective model: as the report did, leak included, and so that a skipped step reveals
nothing.

The report's way (``CarryOver``): a place whose gate is closed makes no output, and its target is carried over
to the next place. Over tokens t_0 .. t_T of a window, with out_i the outputs and k_i their number before i,

    target_i = t[ min(1 + k_i, T - 1) + s ]
    L = sum_i out_i CE(z_i, target_i) / sum_i out_i + 0.1 mean_i BCE(g_i, 1 - H_i / ln V)

The target waits while the input goes on: after two skips it is among the inputs already (``lags``). That leak
is the report's main mistake. s = 1 is another one, a double shift: the loader had shifted the labels before,
so that with no skip at all the model learns to say the token after next.

Corrected (``Attempts``): a skipped step is another attempt at the same target from the same inputs
(``SelectiveLM.attempts``). The loss of a token is the mean of that of its first attempt and of the one that
is spoken, and the gate, by ``rule``, is

    straight_through   the hard decisions of use, with the gradient of the probabilities behind them
    score_function     drawn, and reinforced by what the skipped steps cost or gained (REINFORCE; the baseline
                       is the batch's mean)
    evenly             not learned: every so many tokens, the same number of skipped steps; for thresholds on
                       entropy
    interval           not learned: ``max_skip`` skipped steps before every token, as in a later version

The first two keep the mean number of skipped steps near ``skips_per_token`` by a squared distance.

Shapes: B sequences, T positions, N = B T places, m most skipped steps, D width, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp.errors import UserError
from offramp.states.statistics import Readout, predictions, token_statistics
from offramp.systems.ensemble import Optimisation
from offramp.systems.selective_output.model import SelectiveLM, require_skips
from offramp.training.loop import Best, Row, Training, every
from offramp.training.losses import total_nll

RULES = ("straight_through", "score_function", "evenly", "interval")
GATE_WEIGHT = 0.1
"""Weight of the gate's loss in the report."""
TOGETHER = 32
"""Sequences in one pass without gradients: a bound on memory."""


class Method(Protocol):
    """A loss to minimise, and what the trained rule itself scores."""

    def loss(self, model: SelectiveLM, tokens: Tensor, targets: Tensor) -> Tensor:
        """A scalar of tokens (B, T) and the token after each, targets (B, T)."""

    def score(self, model: SelectiveLM, tokens: Tensor, targets: Tensor) -> tuple[float, int]:
        """Total negative log-likelihood in nats by the rule of training, and of how many outputs; without
        gradients."""


# Who speaks ---------------------------------------------------------------------------------


def outputs(gates: Tensor, threshold: float, max_skip: int) -> Tensor:
    """Published: places (B, T) that speak, where the gate (B, T) exceeds ``threshold`` or ``max_skip`` skips
    have just happened.

    The scan from left to right in closed form: of a run of closed gates every (max_skip + 1)-th place speaks.
    """
    require_skips(max_skip)
    place = torch.arange(gates.shape[-1], device=gates.device)
    opened = gates > threshold
    last_open = torch.where(opened, place, -1).cummax(-1).values
    return opened | ((place - last_open - 1) % (max_skip + 1) == max_skip)


def outputs_at_intervals(length: int, skip_interval: int) -> Tensor:
    """Fixed skip: places (T,) that speak, those that ``skip_interval`` divides. UserError for an interval
    below 1."""
    if skip_interval < 1:
        raise UserError(
            f"skip_interval = {skip_interval}: every so many places one speaks; use 1 (all of them) or more"
        )
    return torch.arange(length) % skip_interval == 0


def carried(spoken: Tensor) -> Tensor:
    """Place (B, T - 1) of each output's target among the labels: 1 + outputs before it, at most the last;
    spoken (B, T - 1)."""
    before = spoken.long().cumsum(-1) - spoken.long()
    return (1 + before).clamp_max(spoken.shape[-1])


def lags(spoken: Tensor, double_shift: bool = True) -> Tensor:
    """How many places (B, T - 1) the target of each output lies behind the newest input; from 0 on it is
    among the inputs."""
    place = torch.arange(spoken.shape[-1], device=spoken.device)
    return place - (carried(spoken) + double_shift)


# Published ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class CarryOver:
    """The published loss, and with its flaws taken out one at a time."""

    max_skip: int = 1
    threshold: float = 0.5
    double_shift: bool = True
    carries: bool = True
    """Targets wait for outputs; else every place speaks and none does."""
    skip_interval: int | None = None
    """Outputs at these intervals instead of by the gate, which is then not trained (the fixed-skip
    successor)."""

    def __post_init__(self) -> None:
        require_skips(self.max_skip)
        outputs_at_intervals(1, 1 if self.skip_interval is None else self.skip_interval)

    def spoken(self, gates: Tensor) -> Tensor:
        """Which places of gates (B, T) make an output."""
        if not self.carries:
            return torch.ones_like(gates, dtype=torch.bool)
        if self.skip_interval is not None:
            return outputs_at_intervals(gates.shape[-1], self.skip_interval).to(gates.device).expand_as(gates)
        return outputs(gates.detach(), self.threshold, self.max_skip)

    def targets(self, tokens: Tensor, targets: Tensor, spoken: Tensor) -> Tensor:
        """The label (B, T - 1) of each place but the last; spoken (B, T - 1)."""
        labels = targets if self.double_shift else tokens
        return labels.gather(1, carried(spoken))

    def loss(self, model: SelectiveLM, tokens: Tensor, targets: Tensor) -> Tensor:
        states = model.states(tokens)[:, :-1]
        gates = model.gate(states)
        spoken = self.spoken(gates)
        wanted = self.targets(tokens, targets, spoken)
        total = total_nll(states[spoken], model.head.weight, wanted[spoken]) / spoken.sum()
        return (
            total
            if self.skip_interval is not None
            else total + GATE_WEIGHT * _entropy_loss(model, states, gates)
        )

    @torch.no_grad()
    def score(self, model: SelectiveLM, tokens: Tensor, targets: Tensor) -> tuple[float, int]:
        states = model.states(tokens)[:, :-1]
        spoken = self.spoken(model.gate(states))
        wanted = self.targets(tokens, targets, spoken)
        return float(total_nll(states[spoken], model.head.weight, wanted[spoken])), int(spoken.sum())


def _entropy_loss(model: SelectiveLM, states: Tensor, gates: Tensor) -> Tensor:
    """Mean binary cross-entropy of gates (...) towards 1 - H / ln V of what states (..., D) predict, which is
    taken as given."""
    (statistics,) = token_statistics([states.flatten(0, -2)], [Readout(model.head.weight)])
    wanted = 1 - statistics["entropy"] / math.log(model.config.vocab_size)
    return F.binary_cross_entropy(gates.flatten(), wanted.clamp(0, 1))


# Corrected ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attempts:
    """The corrected loss. UserError for an unknown rule and for max_skip < 0."""

    rule: str
    max_skip: int = 1
    skips_per_token: float = 0.4
    """Wanted on average, of the rules straight_through, score_function and evenly."""
    threshold: float = 0.5
    balance: float = 1.0
    """Weight of the squared distance from ``skips_per_token``, in nats."""

    def __post_init__(self) -> None:
        require_skips(self.max_skip)
        if self.rule not in RULES:
            raise UserError(f"rule = {self.rule!r} does not decide who speaks; use one of {', '.join(RULES)}")

    def spoken_after(self, gates: Tensor, places: Tensor) -> Tensor:
        """Probability (m + 1, N) that each attempt is the one spoken; gates (m, N), places (N,) of the tokens
        in their windows.

        Zeros and ones, except for score_function, which draws in use as in training.
        """
        if (
            self.rule == "evenly"
        ):  # the token at which the running number of skipped steps passes a whole one takes as many
            due = ((places + 1) * self.skips_per_token).floor() - (places * self.skips_per_token).floor()
            return F.one_hot(due.long().clamp_max(self.max_skip), self.max_skip + 1).T.to(gates.dtype)
        if self.rule == "interval":
            return torch.cat((torch.zeros_like(gates), gates.new_ones(1, gates.shape[1])))
        return _first_to_speak(
            gates if self.rule == "score_function" else (gates > self.threshold).to(gates.dtype)
        )

    def loss(self, model: SelectiveLM, tokens: Tensor, targets: Tensor) -> Tensor:
        states, places, targets = _attempts(model, tokens, self.max_skip), _places(tokens), targets.flatten()
        gates = model.gate(states[:-1])
        after = self.spoken_after(gates.detach(), places)
        if self.rule == "score_function":
            after = F.one_hot(torch.multinomial(after.T, 1).squeeze(1), self.max_skip + 1).T.to(gates.dtype)
        chosen = after.argmax(0)
        again = chosen > 0
        spoken = states[chosen[again], torch.nonzero(again).squeeze(1)]
        rows, wanted = torch.cat((states[0][again], spoken)), torch.cat((targets[again], targets[again]))
        total = (
            _sum_nll(model, states[0][~again], targets[~again]) + _sum_nll(model, rows, wanted) / 2
        ) / len(targets)
        return total + self._gate_loss(model, states, gates, after, targets)

    def _gate_loss(
        self, model: SelectiveLM, states: Tensor, gates: Tensor, after: Tensor, targets: Tensor
    ) -> Tensor:
        if self.rule not in ("straight_through", "score_function") or not len(gates):
            return gates.new_zeros(())
        nll = _each_nll(model, states, targets)
        count = torch.arange(len(after), dtype=gates.dtype, device=gates.device).unsqueeze(1)
        if self.rule == "straight_through":
            hard = (gates > self.threshold).to(gates.dtype)
            after = _first_to_speak(hard + gates - gates.detach())
            return (after * nll).sum(0).mean() + self._off_balance(after * count)
        cost = (after * nll).sum(0) - nll[0]
        likelihood = (after * _first_to_speak(gates)).sum(0).clamp_min(1e-9).log()
        return ((cost - cost.mean()) * likelihood).mean() + self._off_balance(_first_to_speak(gates) * count)

    def _off_balance(self, skips: Tensor) -> Tensor:
        return self.balance * (skips.sum(0).mean() - self.skips_per_token).square()

    @torch.no_grad()
    def score(self, model: SelectiveLM, tokens: Tensor, targets: Tensor) -> tuple[float, int]:
        states = _attempts(model, tokens, self.max_skip)
        after = self.spoken_after(model.gate(states[:-1]), _places(tokens))
        return float((after * _each_nll(model, states, targets.flatten())).sum()), targets.numel()


def _first_to_speak(speaks: Tensor) -> Tensor:
    """Probability (m + 1, N) that each attempt is the first that speaks, the last speaking anyway; speaks (m,
    N)."""
    ones = speaks.new_ones(1, speaks.shape[1])
    return torch.cat((ones, (1 - speaks).cumprod(0))) * torch.cat((speaks, ones))


def _attempts(model: SelectiveLM, tokens: Tensor, max_skip: int) -> Tensor:
    """(m + 1, N, D)"""
    return torch.stack(model.attempts(tokens, max_skip)).flatten(1, 2)


def _places(tokens: Tensor) -> Tensor:
    return torch.arange(tokens.shape[1], device=tokens.device).repeat(len(tokens))


def _sum_nll(model: SelectiveLM, rows: Tensor, targets: Tensor) -> Tensor:
    return total_nll(rows, model.head.weight, targets) if len(rows) else rows.sum()


def _each_nll(model: SelectiveLM, states: Tensor, targets: Tensor) -> Tensor:
    """NLL (m + 1, N) of every attempt in nats, without gradients."""
    readout = Readout(model.head.weight)
    return torch.stack([predictions(part, readout, targets)[0] for part in states])


# Training -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """What a training did."""

    curve: list[tuple[int, float]]
    """Updates and NLL in nats by ``evaluate``, at every look."""
    best_look: int
    """Counted from 1."""
    best_nll: float


def train(
    model: SelectiveLM,
    method: Method,
    batches: Iterator[tuple[Tensor, Tensor]],
    evaluate: Callable[[SelectiveLM], float],
    *,
    how: Optimisation,
    updates: int,
    look_every: int,
    patience: int | None = None,
) -> Trained:
    """Train in place at a constant rate, and leave the weights of the best look; stop after ``patience``
    looks in a row without a better one.

    UserError where the loss is no number any more.
    """
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=how.learning_rate, weight_decay=how.weight_decay, fused=True
    )
    loss = torch.zeros(())

    def step(number: int) -> None:
        nonlocal loss
        optimiser.zero_grad(set_to_none=True)
        loss = method.loss(model, *next(batches))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), how.clip_norm)
        optimiser.step()

    def look(update: int) -> tuple[list[Row], float]:
        nll = evaluate(model)
        if not math.isfinite(nll) or not math.isfinite(float(loss.detach())):
            raise UserError(
                f"selective model: the loss is {float(loss.detach())} at update {update}; "
                f"lower learning_rate (now {how.learning_rate})"
            )
        return [{"update": update, "nll": nll}], nll

    progress = Training(
        step=step,
        look=look,
        steps=updates,
        looks=every(look_every, updates),
        selection=Best(model, patience),
    ).run()
    curve = [(row["update"], row["nll"]) for row in progress.curve]
    return Trained(curve, progress.best_look, progress.best_loss)


def mean_score(model: SelectiveLM, method: Method, tokens: Tensor, targets: Tensor) -> float:
    """Mean NLL in nats per output of the rule of training, over tokens (B, T)."""
    parts = [method.score(model, x, y) for x, y in zip(tokens.split(TOGETHER), targets.split(TOGETHER))]
    return sum(total for total, _ in parts) / sum(count for _, count in parts)
