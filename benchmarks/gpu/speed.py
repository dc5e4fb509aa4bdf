"""Routed scoring against plain passes, decoding against static truncation, on a model that fills the device.

Also what one decoding step launches and waits for, and how much memory the passes take. Models are untrained:
what a pass costs does not depend on what it says.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.decoding import nobody_leaves, seconds_by_variant, speedup
from benchmarks.gpu.counting import launches
from benchmarks.inputs import RandomWindows, model
from benchmarks.measure import Median, Row, in_turn, median_ratio
from benchmarks.routing import random_exits
from offramp.models.native import BlockwiseLM
from offramp.routing.cost import executed_flops, full_depth_flops
from offramp.routing.decoder import Decoder
from offramp.routing.executor import Executor, Policy, Work
from offramp.routing.generate import decode
from offramp.routing.policies import FixedExit, GivenExits
from offramp.states.statistics import Readout, predictions

GIB = 2**30
SHARES = (0.0, 0.5, 0.9)


@dataclass(frozen=True)
class Size:
    """A model of three blocks of ``layers`` each, and how much text it is given."""

    width: int
    layers: int
    vocab: int
    window: int
    windows: int
    """In a batch that is scored."""
    rows: int
    """In a batch that is continued."""
    prompt: int
    new: int
    repetitions: int

    @classmethod
    def filling(cls, memory: int) -> Size:
        """The size for a device of so many bytes: weights and states take a third of them at most."""
        large = memory >= 30 * GIB
        return cls(
            width=2048 if large else 1024,
            layers=8,
            vocab=32_000,
            window=1024,
            windows=16 if large else 8,
            rows=64,
            prompt=64,
            new=32,
            repetitions=7,
        )

    def model(self, blocks: Sequence[int]) -> BlockwiseLM:
        """An untrained model with so many layers in each block."""
        heads = max(1, self.width // 128)
        ffn_width = (self.width * 11 // 4) // 64 * 64
        return model(self.vocab, self.window, self.width, heads, ffn_width, tuple(blocks))

    def __str__(self) -> str:
        return f"width {self.width}, {3 * self.layers} layers in 3 blocks, vocabulary {self.vocab}"


def rows(device: torch.device, size: Size, precision: str) -> Iterator[Row]:
    """All rows; ``precision`` is that of scoring, decoding is fp32."""
    lm = size.model([size.layers] * 3).to(device)
    yield from scoring(lm, device, size, precision)
    yield from decoding(lm, device, size)
    if device.type == "cuda":
        yield from steps(lm, device, size)


def scoring(lm: BlockwiseLM, device: torch.device, size: Size, precision: str) -> Iterator[Row]:
    """Routed passes against plain ones, and the memory of both."""
    batch = RandomWindows(size.windows, size.window, size.vocab).batch(torch.arange(size.windows))
    tokens, targets = (part.to(device) for part in batch)
    executor, last = Executor(lm, precision=precision), Readout(lm.readout_matrix(2))
    about = f"{size}, {precision}, {size.windows} windows of {size.window}"

    @torch.no_grad()
    def plain() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            states = lm(tokens)[-1].flatten(0, 1)
        predictions(lm.readout_input(2, states), last, targets.flatten())

    peaks = {"plain": peak(device, plain)}
    for share in SHARES:
        policy, work = GivenExits(random_exits(tokens.numel(), share).to(device)), Work()
        executor.run(tokens, targets, policy, work)
        run = partial(executor.run, tokens, targets, policy)
        routed, full = in_turn(waited(device, run), waited(device, plain), size.repetitions)
        if share == 0:
            ratio = median_ratio(full, routed)
            held = f"blocks and last readout, no exits, {about}"
            yield Row("gpu_routed_nothing_exits", ratio, "x speed", ">= 0.97", held)
            continue
        peaks[f"routed {share:.0%}"] = peak(device, run)
        flop_saving = 1 - executed_flops(lm, work) / full_depth_flops(lm, tokens.numel(), size.window)
        saved = [1 - seconds / whole for seconds, whole in zip(routed, full)]
        yield Row(
            f"gpu_routed_{100 * share:.0f}_exit",
            Median.of(part / flop_saving for part in saved),
            "wall / flop saving",
            ">= 0.85",
            f"flop_saving {flop_saving:.3f}, wall_saving {statistics.median(saved):.3f}, {about}",
        )
    if device.type == "cuda":
        for name, mib in peaks.items():
            key = name.replace(" ", "_").replace("%", "")
            yield Row(f"gpu_memory_{key}", mib, "MiB", None, f"peak beside the weights, {about}")


def decoding(lm: BlockwiseLM, device: torch.device, size: Size) -> Iterator[Row]:
    """Decoding with exits asked or forced, against plain decoding and models that end at the exit."""
    text = RandomWindows(size.rows, size.prompt, size.vocab).batch(torch.arange(size.rows))[0].tolist()
    cut = {blocks: size.model([size.layers * blocks]).to(device) for blocks in (1, 2)}

    def way(of: BlockwiseLM, policy: Policy | None = None) -> Callable[[int], object]:
        return lambda count: waited(device, lambda: list(decode(of, text, count, policy)))()

    nobody = nobody_leaves(lm)
    times: Mapping[str, list[float]] = seconds_by_variant(
        {
            "full": way(lm),
            "never": way(lm, moved(nobody, device)),
            "two thirds": way(lm, FixedExit(1)),
            "cut at two thirds": way(cut[2]),
            "one third": way(lm, FixedExit(0)),
            "cut at one third": way(cut[1]),
        },
        size.new,
        size.repetitions,
    )
    about = f"{size}, fp32, batch {size.rows}, prompts of {size.prompt} tokens and {size.new} new ones"
    speed = size.rows * size.new / statistics.median(times["full"])
    for name, slow, fast, bar, against in (
        ("never_exits", "full", "never", ">= 0.97", f"plain decoding, {speed:.0f} tokens/s"),
        ("forced_two_thirds", "cut at two thirds", "two thirds", ">= 0.95", "a model that ends there"),
        ("forced_one_third", "cut at one third", "one third", ">= 0.85", "a model that ends there"),
    ):
        held = f"{against}; {about}"
        yield Row(f"gpu_decode_{name}", speedup(times, slow, fast), "x speed", bar, held)


def steps(lm: BlockwiseLM, device: torch.device, size: Size) -> Iterator[Row]:
    """Kernels that one decoding step launches, and times that it waits for the device."""
    half = random_exits(size.rows, 0.6).to(device)
    ways = {
        "full": None,
        "never_exits": moved(nobody_leaves(lm), device),
        "mixed_exits": GivenExits(half),
        "forced_one_third": FixedExit(0),
    }
    text = RandomWindows(size.rows, size.prompt, size.vocab).batch(torch.arange(size.rows))[0].to(device)
    numbers = torch.arange(size.rows, device=device)
    for name, policy in ways.items():
        decoder = Decoder(lm, size.rows, "propagate", size.prompt)
        decoder.feed(numbers.repeat_interleave(4), text[:, :4].flatten(), None)
        place = iter(range(4, size.prompt))

        def step(decoder=decoder, policy=policy, place=place) -> list[int]:
            fed = decoder.feed(numbers, text[:, next(place)], policy)
            return decoder.logits(fed.exit, fed.states).argmax(-1).tolist()

        step(), step()
        seen = launches(step)
        about = f"one step of {size.rows} rows, token read at its end, {size}"
        yield Row(f"gpu_step_kernels_{name}", seen.kernels, "kernels", None, about)
        yield Row(f"gpu_step_waits_{name}", seen.waits, "waits", None, about)


def moved(policy: Policy, device: torch.device) -> Policy:
    """A ClassifierPolicy with its classifier on the device."""
    policy.classifier.to(device)  # type: ignore[attr-defined]
    return policy


def waited(device: torch.device, work: Callable[[], object]) -> Callable[[], object]:
    """The work, ended when the device has done it."""

    def done() -> object:
        out = work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return out

    return done


def peak(device: torch.device, work: Callable[[], object]) -> float:
    """MiB that ``work`` allocates at most beside what is there already; 0 where none are counted."""
    if device.type != "cuda":
        return 0.0
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    waited(device, work)()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20
