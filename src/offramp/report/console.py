"""Generated text on a terminal: streamed after its prompt, coloured by exit, and timed against full depth."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import chain, islice

from rich.console import Console
from rich.table import Table
from rich.text import Text

from offramp.models.blockwise import Blockwise
from offramp.report.text import visible
from offramp.routing.executor import Work
from offramp.routing.generate import Step

COLOURS = ("green", "yellow", "magenta", "blue", "red")
"""Of the exits but the last, from the first on; the last exit's text is plain."""
PROMPT = "bold"
"""The style of the text that was given, which no exit predicted."""


def stream(
    console: Console,
    prompt: str,
    steps: Iterator[Step],
    decode: Callable[[list[int]], str],
    last: int,
    colour: bool,
) -> None:
    """Print the prompt, then one row's tokens as they come, each in the colour of the exit that predicted it.

    The prompt is in a style of its own; the key to the colours stands above it. ``decode`` gives the text of
    tokens that follow the prompt. Nothing is printed before the first token is there: until then it may turn
    out that none can be made.
    """
    first = list(islice(steps, 1))
    if colour:
        key = Text.assemble(("prompt", PROMPT), "  exit ")
        for exit in range(last + 1):
            key.append(f" {exit} ", style=_style(exit, last))
        console.print(key)
    console.print(Text(visible(prompt), style=PROMPT), end="", soft_wrap=True)
    tokens: list[int] = []
    shown = 0
    for step in chain(first, steps):
        for token, exit in zip(step.tokens, step.exits):
            tokens.append(token)
            text = decode(tokens).rstrip("\ufffd")  # the rest of a character is yet to come
            console.print(
                Text(visible(text[shown:]), style=_style(exit, last) if colour else ""),
                end="",
                soft_wrap=True,
            )
            shown = max(shown, len(text))
    console.print()


def _style(exit: int, last: int) -> str:
    return "" if exit == last else COLOURS[exit % len(COLOURS)]


def compare(
    model: Blockwise,
    prompt: int,
    early: Callable[[Work], Iterator[Step]],
    full: Callable[[Work], Iterator[Step]],
    rounds: int = 3,
) -> Table:
    """Depth and speed of ``early`` beside ``full``.

    They run in turn ``rounds`` times, an odd number, after one unmeasured run of each, and every second pair
    the other way round. Both speeds are of the pair with the median ratio, so that they have that ratio.
    Layers are per token of the text that was made and of its ``prompt`` tokens; those run for drafts that
    were wrong count, too.
    """
    makers, pairs = (early, full), []
    counts, works = [0, 0], [Work(), Work()]
    for turn in range(rounds + 1):
        speeds = [0.0, 0.0]
        for place in (0, 1) if turn % 2 else (1, 0):
            works[place] = Work()
            begin = time.perf_counter()
            counts[place] = sum(len(step.tokens) for step in makers[place](works[place]))
            speeds[place] = counts[place] / (time.perf_counter() - begin)
        if turn:
            pairs.append(speeds)
    median = sorted(pairs, key=lambda pair: pair[0] / pair[1])[rounds // 2]
    table = Table(
        "",
        "tokens",
        "layers run per token",
        "tokens/s",
        caption=f"{median[0] / median[1]:.2f}x the speed of full depth by the clock, prompt included; the "
        f"median of {rounds} pairs of runs, whose speeds these are",
    )
    layers = sum(model.config.block_layers)
    for name, count, speed, work in zip(("early exit", "full depth"), counts, median, works):
        # the last token made is not fed
        run = sum(work.layer_tokens) / (prompt + count - 1)
        table.add_row(name, str(count), f"{run:.1f} of {layers}", f"{speed:.1f}")
    return table
