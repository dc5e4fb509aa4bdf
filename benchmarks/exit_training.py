"""Training an exit classifier from cached states against running the model again in every epoch."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks import naive_blockwise as naive
from benchmarks.blockwise_training import BATCH, VOCAB, WINDOW, fit_from_cache, untrained
from benchmarks.collect import collect
from benchmarks.inputs import RandomWindows
from benchmarks.measure import Median, Row, in_turn, median_ratio, rounds, seconds
from offramp.training.exit_classifiers import fit_classifier
from offramp.training.inputs import HeldInputs

EPOCHS, PAIRS = 3, 5
TOKENS, WIDTH = 65_536, 64


def run() -> Iterator[Row]:
    model, windows = untrained(), RandomWindows(512, WINDOW, VOCAB)
    with torch.no_grad():
        tokens, targets = windows.batch(torch.arange(len(windows)))
        hidden = model.embed(tokens)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "states"
        collect(model, windows, path)
        times, plain = in_turn(
            lambda: fit_from_cache(path, EPOCHS),
            lambda: naive.train_classifier(model, 0, hidden, targets, BATCH, EPOCHS, 1e-3),
            PAIRS,
        )
    yield Row(
        "exit_training_from_cache",
        median_ratio(plain, times),
        "x speed",
        ">= 50",
        f"block and full logits ({VOCAB} entries, width 64) run again in every epoch; {EPOCHS} epochs of "
        f"{len(windows)} windows of {WINDOW} in batches of {BATCH}; ours reads the states artifact from disk",
    )
    yield convergence()


def convergence() -> Row:
    """Seconds until a classifier on narrow states has converged, early stopping included."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(TOKENS, WIDTH, generator=generator)
    labels = (
        inputs[:, :4].prod(1) + inputs[:, 4] + 0.5 * torch.randn(TOKENS, generator=generator)
    ).unsqueeze(1)
    fit, select = slice(0, TOKENS * 3 // 4), slice(TOKENS * 3 // 4, TOKENS)

    def work() -> None:
        outcome = fit_classifier(
            (HeldInputs(inputs[fit]), labels[fit]),
            (HeldInputs(inputs[select]), labels[select]),
            "gain",
            [128],
            learning_rate=8e-3,
            batch_size=4096,
            max_epochs=200,
            patience=2,
            seed=0,
        )
        if not outcome.converged:
            raise RuntimeError("the fit did not converge, so its time says nothing")

    return Row(
        "exit_fit_to_convergence",
        Median.of(seconds(work) for _ in range(rounds(PAIRS))),
        "s",
        "<= 10",
        f"MLP-2 on {TOKENS} x {WIDTH} states, until the selection loss no longer falls at any learning rate",
    )
