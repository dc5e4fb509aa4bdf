"""Collecting states against a bare forward pass, and its memory against the number of tokens."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.inputs import RandomWindows, default_model, smollm2
from benchmarks.measure import Row, added_memory, in_rounds, in_turn, median_ratio, rounds
from benchmarks.statistics import textbook
from offramp.models.blockwise import Blockwise
from offramp.models.native import BlockwiseLM
from offramp.models.pretrained import PretrainedLM
from offramp.routing.cost import full_depth_flops
from offramp.states.collect import collect_states, iterate_states
from offramp.states.store import StatesWriter

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SETTINGS = SimpleNamespace(precision="fp32", dtype="float16", shard_tokens=65536, batch_size=64)
PAIRS, ROUNDS, PROCESSES = 9, 9, 5
BAR = ">= 0.9"
"""Against a forward pass that reads out every exit, as ``collect`` must."""


def run() -> Iterator[Row]:
    model = default_model()
    windows = RandomWindows(256, model.config.window, model.config.vocab_size)
    with tempfile.TemporaryDirectory() as folder:
        work = partial(collect, model, windows, Path(folder) / "states")
        times, bare = in_turn(work, lambda: forward(model, windows, [model.config.num_blocks - 1]), PAIRS)
        yield Row(
            "collect_over_forward",
            median_ratio(bare, times),
            "x tokens/s",
            None,
            "all blocks and the logits of the last exit, default model, same batches, "
            "nothing kept or written",
        )
        times, bare = in_turn(
            work, lambda: forward(model, windows, list(range(model.config.num_blocks))), PAIRS
        )
        yield Row(
            "collect_over_forward_all_exits",
            median_ratio(bare, times),
            "x tokens/s",
            BAR,
            "all blocks and the logits of every exit (which collect needs), nothing kept or written",
        )
    small, large = zip(*((memory(800), memory(8000)) for _ in range(rounds(PROCESSES))))
    yield Row(
        "collect_memory_10x_tokens",
        median_ratio(large, small),
        "x added memory",
        "<= 1.25",
        f"800 windows of 128 tokens ({statistics.median(small):.0f} MiB added); 8000 measured, a small "
        "model, default shards",
    )
    yield from pretrained_rows(*smollm2((10, 20), 128), "SmolLM2-135M", 2, ROUNDS)


def collect(model: BlockwiseLM, windows: RandomWindows, path: Path) -> None:
    """Write the states of all windows, as stage collect does with its default settings."""
    collect_states(model, windows, path, SETTINGS, params={}, inputs={}, device=torch.device("cpu"))


def pretrained_rows(
    base: PreTrainedModel, lm: PretrainedLM, name: str, windows: int, wanted: int
) -> Iterator[Row]:
    """The rows of a checkpoint, of one batch of windows at a time.

    The readout matrices, which are written once per artifact, are left out.
    """
    text, last = RandomWindows(windows, lm.config.window, lm.config.vocab_size), lm.config.num_blocks - 1
    with tempfile.TemporaryDirectory() as folder:
        works = {
            "collect": lambda: collect_batch(lm, text, Path(folder)),
            "forward": lambda: forward(lm, text, [last]),
            "all exits": lambda: forward(lm, text, list(range(last + 1))),
            "hidden states": lambda: hidden_states_loop(base, lm, text, Path(folder) / "loop.safetensors"),
        }
        for work in works.values():
            work()
        times = dict(zip(works, in_rounds(list(works.values()), wanted)))
    whole, exits = full_depth_flops(lm, 1, text.window), last + 1
    share = whole / (whole + sum(lm.readout_flops(exit) for exit in range(last)))
    size = f"{name}, {exits} exits, {windows} windows of {text.window}, states in fp16 and columns written"
    for suffix, rival, bar, against in (
        (
            "forward",
            "forward",
            None,
            f"all layers and the logits of the last exit, {share:.2f} of the FLOPs that collect needs",
        ),
        (
            "forward_all_exits",
            "all exits",
            BAR,
            "all layers and the logits of every exit, which collect needs",
        ),
        (
            "hidden_states_loop",
            "hidden states",
            None,
            "Transformers with output_hidden_states=True, the same statistics from full "
            "logits with the textbook formulas, exit by exit, the same states written in fp16",
        ),
    ):
        yield Row(
            f"collect_smollm2_over_{suffix}",
            median_ratio(times[rival], times["collect"]),
            "x tokens/s",
            bar,
            f"{against}; {size}",
        )


def collect_batch(model: Blockwise, windows: RandomWindows, folder: Path) -> Mapping[str, object]:
    """The columns of all windows in one batch."""
    indices = torch.arange(len(windows))
    ((columns, hidden),) = iterate_states(model, windows, [indices], torch.device("cpu"), no_bar=True)
    writer = StatesWriter(folder, len(hidden), "float16", len(hidden[0]))
    writer.add(columns, hidden)
    writer.close()
    return columns


@torch.no_grad()
def hidden_states_loop(
    base: PreTrainedModel, lm: PretrainedLM, windows: RandomWindows, file: Path
) -> list[dict[str, Tensor]]:
    """As one does without Offramp: per exit of ``lm`` the statistics of all windows in one batch."""
    tokens, targets = windows.batch(torch.arange(len(windows)))
    output = base.base_model(tokens, output_hidden_states=True, use_cache=False)
    states = [output.hidden_states[layers] for layers in lm.config.exits_after]
    # Transformers has normed the last state itself.
    normed = [*(base.base_model.norm(state) for state in states), output.last_hidden_state]
    save_file(
        {
            str(exit): state.half().contiguous()
            for exit, state in enumerate([*states, output.last_hidden_state])
        },
        file,
    )
    return [
        textbook(state.flatten(0, 1), base.get_output_embeddings().weight, targets.flatten())
        for state in normed
    ]


@torch.no_grad()
def forward(model: Blockwise, windows: RandomWindows, exits: list[int]) -> None:
    """Run all blocks on all windows and compute the logits of ``exits``; nothing is kept."""
    for indices in torch.arange(len(windows)).split(SETTINGS.batch_size):
        states = model(windows.batch(indices)[0])
        for exit in exits:
            model.logits(exit, states[exit])


def memory(windows: int) -> float:
    """MiB that collecting so many windows of a small model adds."""
    return added_memory(
        "import tempfile\nfrom pathlib import Path\nfrom benchmarks.collect import collect\n"
        "from benchmarks.inputs import RandomWindows, model\n"
        "lm = model(256, 128, 32, 2, 64, (1, 1))\n"
        "folder = tempfile.TemporaryDirectory()\n"
        "collect(lm, RandomWindows(2, 128, 256), Path(folder.name) / 'states')\n"
        f"windows = RandomWindows({windows}, 128, 256)",
        "collect(lm, windows, Path(folder.name) / 'states')",
    )
