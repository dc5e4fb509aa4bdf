"""Translators of SmolLM2 tuned from cached states, against running the checkpoint in every step.

Both begin with the maps of least squares and see the same batches in the same order at the same learning
rates, for as many epochs as the documented run makes. Every repetition has addresses of its own, to learn
from and to be measured on. The reference takes the exact divergence over the whole vocabulary; its maps of
least squares are a gift, while what is measured pays for its pass over the text. Both look at held-out text
while they learn, and pay for it: the reference by running the checkpoint at every look.
"""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.inputs import SMOLLM2, prompts
from benchmarks.measure import ROOT, Median, Row, Skipped, rounds
from offramp.checkpoints.checkpoint import Checkpoint
from offramp.corpus.windows import TokenWindows
from offramp.machine.processes import ALONE
from offramp.models.pretrained import PretrainedLM, load_pretrained
from offramp.params import Pretrain, read_params
from offramp.states.statistics import Readout, token_statistics
from offramp.training.fit import Loss, Phase
from offramp.training.frozen import Translators
from offramp.training.losses import total_divergences
from offramp.training.snapshots import Snapshots

EXITS, WINDOW, BATCH = (10, 20), 256, 2
REPETITIONS, ADDRESSES, WINDOWS, HELD_OUT = 5, 5, 4, 4
"""Addresses of a repetition, windows of each, and windows of these that are held out."""
EPOCHS, LOOKS = 8, 4
"""Epochs: the documented run of the pipeline makes 7.5. Looks at the held-out windows, after equal steps."""
RATE = 1e-3
BAR = 5


class Windows:
    """Stands in for TokenWindows: windows (S, T + 1) of tokens and their last target, in memory."""

    def __init__(self, windows: Tensor):
        self._windows, self.window = windows, windows.shape[1] - 1

    def __len__(self) -> int:
        return len(self._windows)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, T)."""
        return self._windows[indices][:, :-1], self._windows[indices][:, 1:]


@dataclass(frozen=True)
class Measured:
    """One repetition: seconds and divergence (nats) of learning from the cache, and of running the model."""

    cached: float
    passed: float
    """Of ``cached``, those of the pass that makes the cache."""
    streamed: float
    """Until the divergence that the cache led to."""
    divergence: float
    exact: float
    """Divergence after as many steps of the exact one."""
    step_ratio: float


def run() -> Iterator[Row]:
    if not (SMOLLM2 / "config.json").exists():
        raise Skipped("there is no checkpoint in build/smollm2; run `make smollm2`")
    texts = torch.tensor(prompts(REPETITIONS * ADDRESSES, WINDOWS * WINDOW + 1))
    taken = [repetition(texts[number::REPETITIONS]) for number in range(rounds(REPETITIONS))]

    def of(name: str) -> float:
        return statistics.median(getattr(measured, name) for measured in taken)

    train = (ADDRESSES * WINDOWS - HELD_OUT) * WINDOW
    yield Row(
        "translators_from_cache",
        Median.of(measured.streamed / measured.cached for measured in taken),
        "x speed",
        f">= {BAR}",
        f"running SmolLM2 in every step to the same divergence ({of('divergence'):.3f} nats, mean of exits "
        f"after {EXITS[0]} and {EXITS[1]} layers on {HELD_OUT * WINDOW} tokens that were held out): "
        f"{of('streamed'):.0f} s, against {of('cached'):.0f} s, {of('passed'):.0f} of them for the pass; "
        f"{EPOCHS} epochs of {train} tokens in steps of {BATCH * WINDOW}, other addresses every time",
    )
    yield Row(
        "translators_sampled_vocabulary",
        Median.of(measured.divergence - measured.exact for measured in taken),
        "nats",
        "<= 0.01",
        f"the exact divergence in every step: {of('exact'):.4f} nats on the same tokens after as many steps, "
        f"each {of('step_ratio'):.1f} times as long as one from the cache",
    )


def repetition(texts: Tensor) -> Measured:
    """Both ways on the windows of addresses (A, tokens), from the same start; the last are held out."""
    model = load_pretrained(Checkpoint(str(SMOLLM2)), EXITS, WINDOW, translator="affine")
    text = texts.unfold(1, WINDOW + 1, WINDOW).flatten(0, 1)
    train, held_out = (Windows(part) for part in (text[:-HELD_OUT], text[-HELD_OUT:]))
    settings = read_params(ROOT / "params.yaml").pretrain.model_copy(
        update={"method": "frozen", "batch_size": BATCH}
    )
    steps = EPOCHS * len(train) // BATCH
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        phase = _phase(model, settings, Path(folder), train, held_out)
        passed = time.perf_counter() - begun
        start = copy.deepcopy(model.translators.state_dict())
        cached = _train(
            phase,
            steps,
            lambda batch, step: next(iter(phase.losses(batch, step))),
            lambda: statistics.fmean(look.minimised for look in phase.evaluate().values()),
        )
        if cached.divergence[-1] >= cached.divergence[0]:
            raise Skipped(
                "nothing was learned from the cache, so no time to the same divergence says anything"
            )
        model.translators.load_state_dict(start)
        streamed = _train(
            phase,
            steps,
            lambda batch, step: _exact(model, train.batch(batch)[0]),
            lambda: _looked_at(model, held_out),
        )
    return Measured(
        cached=cached.seconds[-1] + passed,
        passed=passed,
        streamed=streamed.seconds_to(cached.divergence[-1]),
        divergence=cached.divergence[-1],
        exact=streamed.divergence[-1],
        step_ratio=streamed.stepping / cached.stepping,
    )


def _phase(model: PretrainedLM, settings: Pretrain, folder: Path, train: Windows, held_out: Windows) -> Phase:
    translators = Translators(model, settings, Snapshots(folder, 30), torch.device("cpu"), ALONE)
    return translators.phase(
        cast(TokenWindows, train), cast(TokenWindows, held_out), torch.arange(len(held_out)), fresh=True
    )


def _exact(model: PretrainedLM, tokens: Tensor) -> dict[str, Loss]:
    """Mean exact divergence of every exit, of tokens (B, T) that the model runs on."""
    with torch.no_grad():
        states = model(tokens)
    inputs = [model.readout_input(exit, x.flatten(0, 1)) for exit, x in enumerate(states)]
    matrices = [model.readout_matrix(0).detach()] * len(inputs)
    totals = total_divergences(inputs, matrices)
    return {str(exit): Loss(total / tokens.numel(), tokens.numel()) for exit, total in enumerate(totals)}


@torch.no_grad()
def _looked_at(model: PretrainedLM, held_out: Windows) -> float:
    """Mean exact divergence of all exits, in nats, on windows that the model is run on."""
    readout, divergences = Readout(model.readout_matrix(0)), []
    for windows in torch.arange(len(held_out)).split(BATCH):
        tokens, targets = held_out.batch(windows)
        inputs = [model.readout_input(exit, x.flatten(0, 1)) for exit, x in enumerate(model(tokens))]
        read = token_statistics(inputs, [readout] * len(inputs), targets.flatten())
        divergences += [statistic["divergence"].mean().item() for statistic in read[:-1]]
    return statistics.fmean(divergences)


class Curve:
    """Seconds of training, with the looks so far, and the mean divergence of the exits at every look."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.divergence: list[float] = []
        self.stepping = 0.0
        """Seconds of all steps, without looks."""

    def seconds_to(self, divergence: float) -> float:
        """Seconds after which a divergence was reached, interpolated between looks; all where it was not."""
        lowest = np.minimum.accumulate(self.divergence)
        return float(np.interp(-divergence, -lowest, self.seconds))


def _train(
    phase: Phase,
    steps: int,
    losses: Callable[[Tensor, int], dict[str, Loss]],
    look: Callable[[], float],
) -> Curve:
    optimiser = torch.optim.AdamW(phase.parameters, lr=RATE, betas=(0.9, 0.95), weight_decay=0, fused=True)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    curve, looking, order = Curve(), 0.0, torch.empty(0)
    for step in range(steps + 1):
        if step % (steps // LOOKS) == 0:
            begun = time.perf_counter()
            curve.divergence.append(look())
            looking += time.perf_counter() - begun
            curve.seconds.append(curve.stepping + looking)
        if step == steps:
            return curve
        begun = time.perf_counter()
        if len(order) < BATCH:
            order = torch.randperm(phase.num_sequences, generator=torch.Generator().manual_seed(step))
        batch, order = order[:BATCH], order[BATCH:]
        torch.stack([loss.mean for loss in losses(batch, step).values()]).sum().backward()
        nn.utils.clip_grad_norm_(phase.parameters, 1.0)
        optimiser.step()
        optimiser.zero_grad()
        decay.step()
        curve.stepping += time.perf_counter() - begun
    return curve
