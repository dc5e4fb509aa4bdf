"""Training an exit classifier from cached states against running the model again in every epoch."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks import naive_seed003 as naive
from benchmarks.collect import collect
from benchmarks.inputs import RandomWindows
from benchmarks.measure import Row, in_turn, median_ratio
from benchmarks.seed003 import BATCH, VOCAB, WINDOW, fit_from_cache, seed_model

EPOCHS, PAIRS = 3, 3


def run() -> Iterator[Row]:
    model, windows = seed_model(), RandomWindows(512, WINDOW, VOCAB)
    with torch.no_grad():
        tokens, targets = windows.batch(torch.arange(len(windows)))
        hidden = model.embed(tokens)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "states"
        collect(model, windows, path)
        times, plain = in_turn(lambda: fit_from_cache(path, EPOCHS),
                               lambda: naive.train_classifier(model, 0, hidden, targets, BATCH, EPOCHS, 1e-3), PAIRS)
    yield Row("exit_training_from_cache", median_ratio(plain, times), "x speed", ">= 50",
              f"block and full logits ({VOCAB} entries, width 64) run again in every epoch; {EPOCHS} epochs of "
              f"{len(windows)} windows of {WINDOW} in batches of {BATCH}; ours reads the states artifact from disk", PAIRS)
