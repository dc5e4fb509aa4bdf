"""A phase of pretraining: its optimiser, learning rates and losses, in the loop that all trainings share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from offramp.errors import UserError
from offramp.machine.processes import ALONE, Processes
from offramp.machine.watch import NOBODY, Watch
from offramp.training.loop import Bar, Progress, Row, Selection, Training, every
from offramp.training.snapshots import Snapshots


@dataclass(frozen=True)
class FitConfig:
    """How to optimise; the same for every phase."""

    batch_size: int
    learning_rate: float
    schedule: str
    """cosine (to zero) or constant, after a linear warm-up."""
    warmup_steps: int
    weight_decay: float
    clip_norm: float | None
    """Longer gradients are scaled down to it; None leaves them as they are."""
    evaluate_every: int
    patience: int
    """The phase stops after this many evaluations in a row without a better calibration loss."""
    seed: int


@dataclass(frozen=True)
class Look:
    """What the calibration split says of one exit: means in nats over the tokens the phase learns from."""

    nll: float
    kl: float | None = None
    """KL divergence of the full-depth prediction from this exit's, in phases that minimise it."""

    @property
    def minimised(self) -> float:
        return self.nll if self.kl is None else self.kl


@dataclass(frozen=True)
class Loss:
    """One of the losses of a batch."""

    mean: Tensor
    tokens: int
    """What ``mean`` is over."""
    weight: float = 1.0
    """In the sum that is minimised."""


@dataclass
class Phase:
    """One stretch of training: which parameters, on which sequences, towards which exits' losses."""

    name: str
    parameters: list[nn.Parameter]
    """All others must have ``requires_grad`` off: it tells what training changes and what snapshots keep."""
    steps: int
    num_sequences: int
    losses: Callable[[Tensor, int], Iterable[dict[str, Loss]]]
    """The losses ("exit 0", ...) of the sequences with the given indices at a given step, in parts: each is
    back-propagated before the next is asked for, so what only one of them needs never lies beside what
    another does."""
    evaluate: Callable[[], dict[int, Look]]
    """What the calibration split says of each exit; a weighted mean over exits selects the best step."""
    window: int
    rate: float = 1.0
    """Learning rate relative to the configuration's."""
    weights: dict[int, float] = field(default_factory=dict)
    """Of the exits, in that mean; 1 where none is given."""
    starts_trained: bool = False
    """Whether the model is of use before the first step: then it is looked at there, too."""
    patient_until: int = 0
    """Step up to which looks without progress do not end the phase: while losses are still being added."""


@dataclass
class PhaseProgress(Progress):
    """The progress of a training in phases."""

    phase: int = 0
    best_nll: float = math.inf
    """Mean NLL in nats at the best step, over exits as in ``best_loss``, which may be a divergence."""
    running: dict[str, float] = field(default_factory=dict)
    """Sum of each training loss since the last look."""
    summed: dict[str, int] = field(default_factory=dict)
    """Steps in each of those sums."""


def sequence_order(num_sequences: int, batch_size: int, seed: int, first_step: int) -> Iterator[Tensor]:
    """Indices of the sequences of step ``first_step`` and on: a fresh permutation per epoch, a function of
    seed and step alone, so that a resumed run reads what the uninterrupted one would have read.
    """
    per_epoch = max(1, num_sequences // batch_size)
    step = first_step
    while True:
        epoch, place = divmod(step, per_epoch)
        if step == first_step or place == 0:
            generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
            order = torch.randperm(num_sequences, generator=generator)
        yield order[place * batch_size : (place + 1) * batch_size]
        step += 1


def learning_rate(config: FitConfig, step: int, steps: int) -> float:
    """Rate of step ``step`` (from 0) of ``steps``, relative to the peak."""
    warmup = min(config.warmup_steps, steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    if config.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@dataclass(frozen=True)
class Means:
    """What a look says of all exits together, as weighted means in nats."""

    nll: float
    minimised: float


class BestOnDisk(Selection[Means]):
    """The weights at the lowest loss, on the main process's disk meanwhile: memory holds the weights, their
    gradients and AdamW's two moments. All processes hold the same weights at any time."""

    def __init__(
        self,
        phase: Phase,
        progress: PhaseProgress,
        *,
        model: nn.Module,
        patience: int,
        snapshots: Snapshots,
        processes: Processes,
    ):
        self.phase, self.progress, self.model, self.patience = phase, progress, model, patience
        self.snapshots, self.processes = snapshots, processes

    def begin(self, progress: Progress) -> None:
        if self.processes.main:
            self.snapshots.keep(self.returns_to(progress), trained(self.model))

    def judge(self, progress: Progress, measured: Means) -> None:
        if measured.minimised < progress.best_loss:
            progress.best_loss, self.progress.best_nll = measured.minimised, measured.nll
            progress.best_step, progress.best_look, progress.misses = progress.step, progress.looks, 0
            if progress.step:
                self.begin(progress)
        elif progress.step > self.phase.patient_until:
            progress.misses += 1

    def ended(self, progress: Progress) -> bool:
        return progress.misses >= self.patience

    def finish(self, progress: Progress) -> None:
        if (
            self.processes.main
        ):  # others may have no such disk, and the next phase's weights replace these there
            self.model.load_state_dict(self.snapshots.kept(self.returns_to(progress)), strict=False)
        self.processes.spread(trained(self.model).values())

    def returns_to(self, progress: Progress) -> str:
        return f"{self.progress.phase}_{progress.best_step}"


def fit_phase(
    phase: Phase,
    *,
    model: nn.Module,
    config: FitConfig,
    progress: PhaseProgress,
    snapshots: Snapshots,
    resumed: dict[str, Any] | None,
    extra: dict[str, Any],
    processes: Processes = ALONE,
    watch: Watch = NOBODY,
) -> None:
    """Train one phase and leave the best weights in the model.

    ``resumed`` is a snapshot taken inside this phase; ``extra`` goes into every snapshot unchanged. Several
    processes take a share of every batch each and make the same step. UserError for batches smaller than the
    number of processes, and where a loss is no finite number any more.
    """
    sequences = min(config.batch_size, phase.num_sequences)
    if sequences < processes.count:
        raise UserError(
            f"pretrain: {phase.name} has batches of {sequences} sequences for {processes.count} processes; "
            "raise pretrain.batch_size or start fewer (runtime.launcher)"
        )
    parameters = phase.parameters if phase.steps else [torch.empty(0)]  # a phase may be a look alone
    optimiser = torch.optim.AdamW(
        parameters, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=config.weight_decay, fused=True
    )
    if resumed:
        optimiser.load_state_dict(resumed.pop("optimiser"))
    Training(
        step=_updates(phase, optimiser, config=config, progress=progress, processes=processes, watch=watch),
        look=lambda number: _look(phase, config, progress),
        steps=phase.steps,
        looks=every(config.evaluate_every, phase.steps),
        looks_first=phase.starts_trained,
        selection=BestOnDisk(
            phase,
            progress,
            model=model,
            patience=config.patience,
            snapshots=snapshots,
            processes=processes,
        ),
        snapshots=snapshots if processes.main else None,
        state=lambda: {"model": trained(model), "optimiser": optimiser.state_dict(), **extra},
        bar=Bar(
            f"pretrain {phase.name}",
            disable=processes.no_bar,
            shows=lambda so_far: {"calibration_ppl": f"{math.exp(min(progress.best_nll, 50)):.2f}"},
        ),
        watch=watch,
    ).run(progress)


def _updates(
    phase: Phase,
    optimiser: torch.optim.Optimizer,
    *,
    config: FitConfig,
    progress: PhaseProgress,
    processes: Processes,
    watch: Watch,
) -> Callable[[int], None]:
    """What a step does: one update from the next batch, by all processes together."""
    batches = sequence_order(
        phase.num_sequences, config.batch_size, config.seed + progress.phase, progress.step
    )

    def step(number: int) -> None:
        rate = config.learning_rate * phase.rate * learning_rate(config, number, phase.steps)
        for group in optimiser.param_groups:
            group["lr"] = rate
        batch = next(batches)
        losses = losses_and_gradients(phase, processes.share(batch), number, processes)
        for name, loss in losses.items():
            if not math.isfinite(loss):
                raise UserError(
                    f"pretrain: the loss of {phase.name}, {name}, is {loss} at step {number}; lower "
                    f"pretrain.learning_rate (now {config.learning_rate}) or raise pretrain.warmup_steps"
                )
        limit = math.inf if config.clip_norm is None else config.clip_norm
        norm = nn.utils.clip_grad_norm_(phase.parameters, limit)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        for name, loss in losses.items():
            progress.running[name] = progress.running.get(name, 0.0) + loss
            progress.summed[name] = progress.summed.get(name, 0) + 1
        tokens = len(batch) * phase.window
        watch.step(phase.name, number + 1, tokens, learning_rate=rate, gradient_norm=norm)

    return step


def trained(model: nn.Module) -> dict[str, Tensor]:
    """The weights that training changes at present, by name: themselves, not copies."""
    return {
        name: parameter.detach() for name, parameter in model.named_parameters() if parameter.requires_grad
    }


def losses_and_gradients(phase: Phase, indices: Tensor, step: int, processes: Processes) -> dict[str, float]:
    """The batch's mean losses by name, and the gradient of their weighted sum in ``.grad``, from this
    process's share of it.

    A mean over the batch is the sum of the shares' means, each weighted by its part of the tokens that count.
    """
    means: dict[str, Tensor] = {}
    for part in phase.losses(indices, step):
        totals = processes.sum([loss.tokens for loss in part.values()])
        shares = {
            name: loss.mean * (loss.tokens / max(1, total))
            for (name, loss), total in zip(part.items(), totals)
        }
        torch.stack([shares[name] * loss.weight for name, loss in part.items()]).sum().backward()
        means |= {name: share.detach() for name, share in shares.items()}
    return dict(zip(means, processes.sum_gradients(phase.parameters, list(means.values()))))


def _look(phase: Phase, config: FitConfig, progress: PhaseProgress) -> tuple[list[Row], Means]:
    """The points of the learning curve, one per exit, and the means over exits; training losses are counted
    afresh from here."""
    looks = phase.evaluate()
    for exit, look in looks.items():
        if not (math.isfinite(look.nll) and math.isfinite(look.minimised)):
            raise UserError(
                f"pretrain: the calibration loss of {phase.name}, exit {exit}, is {look.nll} after step "
                f"{progress.step}; lower pretrain.learning_rate (now {config.learning_rate})"
            )
    rows = [
        {
            "phase": phase.name,
            "exit": exit,
            "step": progress.step,
            "tokens": progress.step * config.batch_size * phase.window,
            "train_loss": _mean_loss(progress, f"exit {exit}"),
            "calibration_ppl": math.exp(min(look.nll, 100.0)),
            **({} if look.kl is None else {"calibration_kl": look.kl}),
        }
        for exit, look in looks.items()
    ]
    progress.running, progress.summed = {}, {}
    weights = {exit: phase.weights.get(exit, 1.0) for exit in looks}
    nll, minimised = (
        sum(weights[exit] * value(look) for exit, look in looks.items()) / sum(weights.values())
        for value in (lambda look: look.nll, lambda look: look.minimised)
    )
    return rows, Means(nll, minimised)


def _mean_loss(progress: PhaseProgress, name: str) -> float | None:
    """Of the steps since the last look; None where the loss was in none of them."""
    return progress.running[name] / progress.summed[name] if name in progress.summed else None
