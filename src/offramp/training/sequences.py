"""What a block learns from: whole sequences in their context, or hard tokens repacked into new sequences.

Shapes: B sequences, T positions, D width.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from offramp.corpus.windows import TokenWindows
from offramp.errors import UserError
from offramp.machine.processes import ALONE, Processes
from offramp.models.blockwise import Blockwise
from offramp.states.statistics import Readout, predictions

THRESHOLD_SEQUENCES = 4096
"""Evenly spaced training sequences from which a hardness threshold is taken: a bound on memory."""

Confidence = Callable[[int, Tensor, Tensor], Tensor]
"""(exit, hidden states (..., D), targets (...)) -> confidence (...); low is hard."""


class BlockInputs(Protocol):
    """What a block learns from, by sequence."""

    def __len__(self) -> int:
        """How many sequences there are."""
        ...

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """The block's inputs (B, T, D) and targets (B, T) of the sequences with the given indices (B,).

        The last part says which tokens count (B, T); it is None where all do.
        """
        ...


class InContext:
    """Whole sequences of a split, run through the blocks before ``block``.

    With ``thresholds`` (one per earlier exit) only tokens below every one of them count.
    """

    def __init__(
        self,
        model: Blockwise,
        windows: TokenWindows,
        block: int,
        device: torch.device,
        confidence: Confidence | None = None,
        thresholds: list[float] | None = None,
    ):
        self.model, self.windows, self.block, self.device = model, windows, block, device
        self.confidence, self.thresholds = confidence, thresholds

    def __len__(self) -> int:
        return len(self.windows)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        tokens, targets = (part.to(self.device) for part in self.windows.batch(indices))
        if self.block == 0:
            return self.model.embed(tokens), targets, None
        counts: Tensor | None = None
        with torch.no_grad():
            x = self.model.embed(tokens)
            for block in range(self.block):
                x = self.model.run_block(block, x)
                if self.thresholds and self.confidence is not None:
                    hard = self.confidence(block, x, targets) < self.thresholds[block]
                    counts = hard if counts is None else counts & hard
        return x, targets, counts


class Repacked:
    """Hard tokens alone, in order, cut into new sequences of T, as in the report ``exit-labels``.

    Their states (N, T, D) after a frozen block and their targets (N, T) lie on disk and are memory-mapped.
    """

    def __init__(self, states: np.ndarray, targets: np.ndarray, device: torch.device):
        self.states, self.targets, self.device = states, targets, device

    def __len__(self) -> int:
        return len(self.states)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor, None]:
        rows = indices.numpy()
        states, targets = torch.from_numpy(self.states[rows]), torch.from_numpy(self.targets[rows])
        return states.to(self.device), targets.to(self.device), None


def evenly_spaced(total: int, wanted: int) -> Tensor:
    """At most ``wanted`` indices spread over range(total)."""
    return torch.linspace(0, total - 1, min(wanted, total)).long()


def hardness_threshold(
    inputs: BlockInputs,
    model: Blockwise,
    block: int,
    confidence: Confidence,
    *,
    ratio: float,
    batch_size: int,
    processes: Processes = ALONE,
) -> float:
    """The confidence below which a share ``ratio`` of the training tokens that count lies after ``block``."""
    counted = []
    with torch.no_grad():
        for indices in processes.share(evenly_spaced(len(inputs), THRESHOLD_SEQUENCES).split(batch_size)):
            x, targets, counts = inputs.batch(indices)
            values = confidence(block, model.run_block(block, x), targets)
            counted.append((values if counts is None else values[counts]).flatten().float().cpu())
    return float(
        np.quantile(
            torch.cat([values for share in processes.gather(counted) for values in share]).numpy(), ratio
        )
    )


def repack(
    inputs: BlockInputs,
    model: Blockwise,
    block: int,
    confidence: Confidence,
    *,
    threshold: float,
    window: int,
    folder: Path,
    batch_size: int,
    device: torch.device,
    processes: Processes = ALONE,
) -> Repacked:
    """The tokens of ``inputs`` whose confidence after ``block`` is below ``threshold``, in ``folder``.

    Tokens that do not fill a last window are dropped. Raises UserError where they do not fill one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = [
        (folder / f"states-{rank}.bin", folder / f"targets-{rank}.bin") for rank in range(processes.count)
    ]
    states_file, targets_file = parts[processes.rank]
    count = 0
    with torch.no_grad(), open(states_file, "wb") as states, open(targets_file, "wb") as targets_out:
        order = processes.share(torch.arange(len(inputs)).split(batch_size))
        for indices in tqdm(
            order, desc=f"hard tokens of block {block}", unit="batch", disable=processes.no_bar
        ):
            x, targets, _ = inputs.batch(indices)
            x = model.run_block(block, x)
            hard = confidence(block, x, targets) < threshold
            states.write(x[hard].float().cpu().numpy().tobytes())
            targets_out.write(targets[hard].cpu().numpy().tobytes())
            count += int(hard.sum())
    count = sum(processes.gather(count))  # every process's files are whole now
    if processes.main:
        for files in zip(*parts):
            _append(files[0], files[1:])
    processes.wait()
    states_file, targets_file = parts[0]
    if count < window:
        raise UserError(
            f"pretrain: block {block} found {count} hard tokens, fewer than one window of {window}; "
            "raise pretrain.blockwise.hard_ratio or give more text"
        )
    rows = count // window
    shape = (rows, window, model.config.width)
    return Repacked(
        np.memmap(states_file, np.float32, "r", shape=shape),
        np.memmap(targets_file, np.int64, "r", shape=shape[:2]),
        device,
    )


def _append(file: Path, others: Sequence[Path]) -> None:
    """Move the contents of ``others`` to the end of ``file``."""
    with open(file, "ab") as whole:
        for other in others:
            with open(other, "rb") as part:
                shutil.copyfileobj(part, whole)
            other.unlink()


def make_confidence(signal: str, model: Blockwise, matrices: list[Tensor]) -> Confidence:
    """The confidence that calls tokens hard: max_prob, correct_prob (uses the target: training only) or
    classifier.

    ``matrices`` holds the readout matrix (V, D) by which each exit is judged.
    """

    readouts: dict[int, Readout] = {}

    def from_readout(exit: int, x: Tensor, targets: Tensor) -> Tensor:
        if exit not in readouts:
            readouts[exit] = Readout(matrices[exit])
        loss, _, max_prob = predictions(
            model.readout_input(exit, x).flatten(0, -2), readouts[exit], targets.flatten()
        )
        return (max_prob if signal == "max_prob" else torch.exp(-loss)).view(targets.shape)

    def from_classifier(exit: int, x: Tensor, targets: Tensor) -> Tensor:
        return torch.sigmoid(model.exit_classifiers[exit](x).squeeze(-1))

    return from_classifier if signal == "classifier" else from_readout
