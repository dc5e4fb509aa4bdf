"""Collecting states against a bare forward pass, and its memory against the number of tokens."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import torch

from benchmarks.inputs import RandomWindows, default_model
from benchmarks.measure import Row, added_memory, in_turn, median_ratio
from offramp.models.native import BlockwiseLM
from offramp.states.collect import collect_states

SETTINGS = SimpleNamespace(dtype="float16", shard_tokens=65536, batch_size=64)
PAIRS = 7


def run() -> Iterator[Row]:
    model = default_model()
    windows = RandomWindows(256, model.config.window, model.config.vocab_size)
    with tempfile.TemporaryDirectory() as folder:
        ours = lambda: collect(model, windows, Path(folder) / "states")  # noqa: E731
        times, bare = in_turn(ours, lambda: forward(model, windows, [model.config.num_blocks - 1]), PAIRS)
        yield Row("collect_over_forward", median_ratio(bare, times), "x tokens/s", ">= 0.85",
                  "all blocks and the logits of the last exit, default model, same batches, nothing kept or written", PAIRS)
        times, bare = in_turn(ours, lambda: forward(model, windows, list(range(model.config.num_blocks))), PAIRS)
        yield Row("collect_over_forward_all_exits", median_ratio(bare, times), "x tokens/s", None,
                  "all blocks and the logits of every exit (which collect needs), nothing kept or written", PAIRS)
    small, large = (memory(windows) for windows in (800, 8000))
    yield Row("collect_memory_10x_tokens", large / small, "x added memory", "<= 1.25",
              f"800 windows of 128 tokens ({small:.0f} MiB added); 8000 measured, a small model, default shards", 1)


def collect(model: BlockwiseLM, windows: RandomWindows, path: Path) -> None:
    collect_states(model, windows, path, SETTINGS, {}, {}, torch.device("cpu"))


@torch.no_grad()
def forward(model: BlockwiseLM, windows: RandomWindows, exits: list[int]) -> None:
    for indices in torch.arange(len(windows)).split(SETTINGS.batch_size):
        states = model(windows.batch(indices)[0])
        for exit in exits:
            model.logits(exit, states[exit])


def memory(windows: int) -> float:
    return added_memory(
        "import tempfile\nfrom pathlib import Path\nfrom benchmarks.collect import collect\n"
        "from benchmarks.inputs import RandomWindows, model\n"
        "lm = model(256, 128, 32, 2, 64, (1, 1))\n"
        "folder = tempfile.TemporaryDirectory()\n"
        "collect(lm, RandomWindows(2, 128, 256), Path(folder.name) / 'states')\n"
        f"windows = RandomWindows({windows}, 128, 256)",
        "collect(lm, windows, Path(folder.name) / 'states')",
    )
