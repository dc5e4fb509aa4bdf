"""Generated text on a terminal: streamed, coloured by exit, and timed against full depth."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tokenizers import Tokenizer

from offramp.corpus.tokenizer import token_texts
from offramp.models.blockwise import Blockwise
from offramp.report.text import visible
from offramp.routing.executor import Work
from offramp.routing.generate import Step

COLOURS = ("green", "yellow", "magenta", "blue", "red")
"""Of the exits but the last, from the first on; the last exit's text is plain."""


def stream(
    console: Console, steps: Iterator[Step], tokenizer: Tokenizer, kind: str, last: int, colour: bool
) -> None:
    """Print one row's tokens as they come, each in the colour of the exit that predicted it."""
    if colour:
        key = Text("exit ")
        for exit in range(last + 1):
            key.append(f" {exit} ", style=_style(exit, last))
        console.print(key)
    tokens: list[int] = []
    shown = 0
    for step in steps:
        for token, exit in zip(step.tokens, step.exits):
            tokens.append(token)
            text = "".join(token_texts(tokenizer, kind, tokens)).rstrip(
                "\ufffd"
            )  # the rest of a character is yet to come
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

    They run in turn ``rounds`` times, after one unmeasured run of each. Layers are per token of the text that
    was made and of its ``prompt`` tokens; those run for drafts that were wrong count, too.
    """
    seconds: tuple[list[float], list[float]] = ([], [])
    counts, works = [0, 0], [Work(), Work()]
    for turn in range(rounds + 1):
        for place, make in enumerate((early, full)):
            works[place] = Work()
            begin = time.perf_counter()
            counts[place] = sum(len(step.tokens) for step in make(works[place]))
            if turn:
                seconds[place].append(time.perf_counter() - begin)
    ratio = statistics.median(
        (b / m) / (a / n) for a, b, n, m in zip(*seconds, [counts[0]] * rounds, [counts[1]] * rounds)
    )
    table = Table(
        "",
        "tokens",
        "layers run per token",
        "tokens/s",
        caption=f"{ratio:.2f}x the speed of full depth by the clock, prompt included; median of {rounds} "
        "runs in turn",
    )
    layers = sum(model.config.block_layers)
    for name, count, times, work in zip(("early exit", "full depth"), counts, seconds, works):
        # the last token made is not fed
        table.add_row(
            name,
            str(count),
            f"{sum(work.layer_tokens) / (prompt + count - 1):.1f} of {layers}",
            f"{count / statistics.median(times):.1f}",
        )
    return table
