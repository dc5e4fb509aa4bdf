"""The loop that trains: a phase at a time, with early stopping on the calibration split and exact resume."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from offramp.errors import UserError
from offramp.parallel import ALONE, Processes
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
    clip_norm: float
    evaluate_every: int
    patience: int
    """The phase stops after this many evaluations in a row without a better calibration loss."""
    seed: int


@dataclass
class Phase:
    """One stretch of training: which parameters, on which sequences, towards which exits' losses."""

    name: str
    parameters: list[nn.Parameter]
    steps: int
    num_sequences: int
    losses: Callable[[Tensor], dict[str, tuple[Tensor, int]]]
    """Named mean losses ("exit 0", ...) of the sequences with the given indices, and the number of tokens each is a mean
    over; their weighted sum is minimised."""
    evaluate: Callable[[], dict[int, float]]
    """Mean calibration NLL in nats per exit, over the tokens this phase learns from; their mean, weighted as the
    losses, selects the best step."""
    window: int
    rate: float = 1.0
    """Learning rate relative to the configuration's."""
    weights: dict[str, float] = field(default_factory=dict)
    """Weight of each named loss; 1 where none is given."""


@dataclass
class Progress:
    """Everything that changes during a training besides the model and the optimiser."""

    phase: int = 0
    step: int = 0
    best_loss: float = math.inf
    best_step: int = 0
    misses: int = 0
    running: dict[str, float] = field(default_factory=dict)
    """Sum of each training loss since the last evaluation."""
    curve: list[dict[str, Any]] = field(default_factory=list)


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


def fit(phase: Phase, index: int, model: nn.Module, config: FitConfig, progress: Progress, snapshots: Snapshots,
        resumed: dict[str, Any] | None, extra: dict[str, Any], processes: Processes = ALONE) -> None:
    """Train one phase and leave the best weights in the model.

    ``resumed`` is a snapshot taken inside this phase; ``extra`` goes into every snapshot unchanged. Several processes
    take a share of every batch each and make the same step: all hold the same weights at any time.
    """
    if min(config.batch_size, phase.num_sequences) < processes.count:
        raise UserError(
            f"pretrain: {phase.name} has batches of {min(config.batch_size, phase.num_sequences)} sequences for "
            f"{processes.count} processes; raise pretrain.batch_size or start fewer (runtime.launcher)"
        )
    optimiser = torch.optim.AdamW(
        phase.parameters, lr=config.learning_rate, betas=(0.9, 0.95), weight_decay=config.weight_decay, fused=True
    )
    best = {name: value.clone() for name, value in model.state_dict().items()}
    if resumed:
        optimiser.load_state_dict(resumed["optimiser"])
        best = resumed["best"]
    batches = sequence_order(phase.num_sequences, config.batch_size, config.seed + index, progress.step)
    bar = tqdm(total=phase.steps, initial=progress.step, desc=f"pretrain {phase.name}", unit="step", disable=processes.no_bar)
    while progress.step < phase.steps and progress.misses < config.patience:
        rate = config.learning_rate * phase.rate * learning_rate(config, progress.step, phase.steps)
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad(set_to_none=True)
        losses = _losses_and_gradients(phase, processes.share(next(batches)), processes)
        total = sum(loss * phase.weights.get(name, 1.0) for name, loss in losses.items())
        if not math.isfinite(total):
            raise UserError(
                f"pretrain: the loss of {phase.name} is {total} at step {progress.step}; lower "
                f"pretrain.learning_rate (now {config.learning_rate}) or raise pretrain.warmup_steps"
            )
        nn.utils.clip_grad_norm_(phase.parameters, config.clip_norm)
        optimiser.step()
        progress.step += 1
        for name, loss in losses.items():
            progress.running[name] = progress.running.get(name, 0.0) + loss
        bar.update()
        if progress.step % config.evaluate_every == 0 or progress.step == phase.steps:
            if _evaluate(phase, config, progress):
                best = {name: value.clone() for name, value in model.state_dict().items()}
            bar.set_postfix(calibration_ppl=f"{math.exp(min(progress.best_loss, 50)):.2f}")
        if processes.main and snapshots.due():
            snapshots.save({"model": model.state_dict(), "optimiser": optimiser.state_dict(), "best": best,
                            "progress": vars(progress), **extra})
    bar.close()
    model.load_state_dict(best)


def _losses_and_gradients(phase: Phase, indices: Tensor, processes: Processes) -> dict[str, float]:
    """The batch's mean losses by name, and the gradient of their weighted sum in ``.grad``, from this process's share of it.

    A mean over the batch is the sum of the shares' means, each weighted by its part of the tokens that count.
    """
    found = phase.losses(indices)
    counts = processes.sum([count for _, count in found.values()])
    losses = {name: mean * (count / max(1, total)) for (name, (mean, count)), total in zip(found.items(), counts)}
    torch.stack([loss * phase.weights.get(name, 1.0) for name, loss in losses.items()]).sum().backward()
    return dict(zip(losses, processes.sum_gradients(phase.parameters, list(losses.values()))))


def _evaluate(phase: Phase, config: FitConfig, progress: Progress) -> bool:
    """Add rows to the learning curve; True if this is the best step so far."""
    nll = phase.evaluate()
    since = progress.step % config.evaluate_every or config.evaluate_every
    for exit, value in nll.items():
        progress.curve.append({
            "phase": phase.name, "exit": exit, "step": progress.step,
            "tokens": progress.step * config.batch_size * phase.window,
            "train_loss": progress.running[f"exit {exit}"] / since,
            "calibration_ppl": math.exp(min(value, 100.0)),
        })
    progress.running = {}
    weights = {exit: phase.weights.get(f"exit {exit}", 1.0) for exit in nll}
    mean = sum(weights[exit] * value for exit, value in nll.items()) / sum(weights.values())
    improved = mean < progress.best_loss
    if improved:
        progress.best_loss, progress.best_step, progress.misses = mean, progress.step, 0
    else:
        progress.misses += 1
    return improved
