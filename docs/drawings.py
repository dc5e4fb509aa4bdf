"""Pictures of README.md and the pages, drawn from params.yaml, dvc.yaml, metrics/ and studies/metrics/."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from docs.figures import Figures
from docs.stages import stage_columns, stage_edges
from docs.svg import Canvas
from docs.writing import written
from offramp.errors import UserError
from offramp.report.theme import ACCENT, INK, MUTED, RULE, SIGNALS, Colour, exit_colours
from studies.common.results import Interval, read_results

FOLDER = "docs/pictures"
CURVE = "metrics/plots/threshold_curve.csv"

EASY, CHANGE, CEILING = SIGNALS["max_prob"], ACCENT, SIGNALS["entropy"]
"""Colours of signals of difficulty, signals of what depth would change, and oracles."""


class Signal(NamedTuple):
    """A row of the figure of who decides."""

    key: str
    """Of study exit_signals."""
    label: str
    colour: Colour


DIFFICULTY = (
    Signal("max_prob", "largest probability", EASY),
    Signal("entropy", "entropy of the prediction", EASY),
    Signal("max_logit", "largest logit", EASY),
    Signal("saturation", "state hardly moves (CALM)", EASY),
)
LEARNED_EASY = (
    Signal("label loss_regression", "learned: the loss", EASY),
    Signal("label correct", "learned: prediction is right", EASY),
)
DEPTH = (
    Signal("label agreement", "learned: agrees with full depth", CHANGE),
    Signal("label gain", "learned: gain of full depth", CHANGE),
    Signal("label divergence", "learned: divergence (default)", CHANGE),
)
ORACLES = (Signal("loss oracle", "oracle: knows the loss", CEILING),)
SHARE = "0.5"
"""Of the tokens, that leave after the first block in the figure."""

MODELS = (("block-wise", "a block at a time"), ("joint", "all exits at once"))
TEXTS = (("sotu", "State of the Union"), ("wikitext", "WikiText-2"))
LEAST, MOST = -1.0, 1.75
"""The axis of what is attained; an interval that goes beyond it ends in an arrow."""


def drawings(figures: Figures, shown: Iterable[str]) -> dict[str, str]:
    """The pictures that pages show, by their names below the root.

    What cannot be drawn is a problem of ``figures``.
    """
    makers: dict[str, Callable[[Figures], Canvas]] = {
        "early-exit": early_exit,
        "who-decides": lambda of: who_decides(of, DIFFICULTY[:2] + DIFFICULTY[3:] + DEPTH[1:]),
        "who-decides-all": lambda of: who_decides(of, DIFFICULTY + LEARNED_EASY + ORACLES + DEPTH),
        "trade-off": trade_off,
        "stages": stages,
    }
    pictures = {}
    for name in shown:
        try:
            if name not in makers:
                raise UserError("there is no such picture")
            pictures[f"{FOLDER}/{name}.svg"] = makers[name](figures).render()
        except UserError as error:
            figures.problems.append(f"docs/drawings.py: {name}: {error}")
    return pictures


# What early exit is -------------------------------------------------------------------------------------


def early_exit(figures: Figures) -> Canvas:
    """Blocks as boxes; a stream of tokens as wide as its share of all tokens, from left to right."""
    shares = figures.json("metrics/routing.json", "exit_fraction")
    layers = figures.param("model.block_layers")
    colours, exits = exit_colours(len(layers)), [shares[f"exit_{k}"] for k in range(len(layers))]
    canvas = Canvas(900, 270, "Tokens that an early block predicts well enough leave there", colours)
    widest, top, left, step = 70.0, 150.0, 150.0, 330.0
    canvas.text(20, top - 4, "all tokens", bold=True)
    canvas.text(20, top + 14, "of the test text", MUTED)
    staying, x = 1.0, left
    for block, (count, share, colour) in enumerate(zip(layers, exits, colours)):
        width, last = widest * staying, block == len(layers) - 1
        box = x + 20
        _stream(canvas, x - 20, box, top, width)
        canvas.box(box, top - 46, 150, 92, colour)
        canvas.text(box + 75, top - 6, f"block {block}", anchor="middle", bold=True)
        canvas.text(box + 75, top + 14, f"{count} layer{'s' * (count > 1)}", MUTED, anchor="middle")
        out = box + 150
        if last:
            _stream(canvas, out, out + 70, top, width, colour)
            canvas.text(out + 80, top - 4, f"{written(share, '.0%')} of the tokens", colour, bold=True)
            canvas.text(out + 80, top + 14, "go to full depth", MUTED)
            break
        _stream(canvas, out, x + step - 20, top, width)
        gone, high = widest * share, top - width / 2
        canvas.area(
            [(out + 40, high), (out + 40 + gone, high), (out + 40 + gone, 62), (out + 40, 62)], colour
        )
        canvas.text(
            out + 40 + gone / 2, 34, f"{written(share, '.0%')} leave here", colour, 14, "middle", True
        )
        canvas.text(out + 40 + gone / 2, 52, "predicted from this state", MUTED, 12, "middle")
        canvas.text(out + 72, top + width / 2 + 22, "exit: would depth", MUTED, 12, "middle")
        canvas.text(out + 72, top + width / 2 + 38, "change much?", MUTED, 12, "middle")
        staying -= share
        x += step
    canvas.text(20, 254, _early_exit_words(figures), MUTED, 12)
    return canvas


def _early_exit_words(figures: Figures) -> str:
    routing = "metrics/routing.json"
    return (
        f"The default run: {figures.json(routing, 'flop_saving', '.0%')} fewer FLOPs, perplexity "
        f"{figures.json(routing, 'ppl_increase', '+.1%', 'interval.ppl_increase')} (95 % interval over "
        f"{figures.json(routing, 'documents')} test documents, one random seed)"
    )


def _stream(
    canvas: Canvas, start: float, end: float, middle: float, width: float, colour: Colour = RULE
) -> None:
    high, low = middle - width / 2, middle + width / 2
    canvas.area([(start, high), (end, high), (end, low), (start, low)], colour)


# Who should decide --------------------------------------------------------------------------------------


def who_decides(figures: Figures, rows: tuple[Signal, ...]) -> Canvas:
    """What signals attain, with intervals: a row each, a panel per training and text that has results."""
    panels = [
        (f"{text}, {model}", values)
        for text_key, text in TEXTS
        for key, model in MODELS
        if (values := _attained(figures.root, text_key, key))
    ]
    if not panels:
        raise UserError("studies/metrics has no results of exit_signals")
    left, width, gap, row_height, top = 214.0, 148.0, 14.0, 25.0, 96.0
    bottom = top + row_height * len(rows)
    canvas = Canvas(
        int(left + (width + gap) * len(panels) + 10),
        int(bottom + 62),
        "What part of the attainable each signal attains",
        (EASY, CHANGE, CEILING),
    )
    canvas.text(16, 26, "Who decides that a token leaves?", bold=True, size=14)
    canvas.text(
        16,
        46,
        "0: no better than chance. 1: the ceiling, who knows what full depth would predict.",
        MUTED,
        12,
    )
    for place, row in enumerate(rows):
        canvas.text(left - 14, top + row_height * (place + 0.5) + 4, row.label, row.colour, 12, "end")
    for place, (title, values) in enumerate(panels):
        x0 = left + (width + gap) * place
        _panel(canvas, x0, top, width, bottom, title)
        for index, row in enumerate(rows):
            y = top + row_height * (index + 0.5)
            _interval(canvas, x0, width, y, values[f"{row.key}.attained.{SHARE}"], row.colour)
    seeds = {
        figures.seeds("exit_signals", text) for text, _ in TEXTS if _attained(figures.root, text, "joint")
    }
    canvas.text(
        left,
        bottom + 46,
        f"{written(float(SHARE), '.0%')} of the tokens leave after the first of two blocks; mean and 95 % "
        f"t interval over {' or '.join(map(str, sorted(seeds)))} random seeds; test documents",
        MUTED,
        11,
    )
    return canvas


def _attained(root: Path, text: str, model: str) -> Mapping[str, Interval]:
    """The values of one training on one text, without the training's name; empty where it was not run."""
    results = read_results(root / "studies", "exit_signals", text)
    if results is None or results.corrected is None:
        return {}
    start = f"{model}:"
    return {
        key.removeprefix(start): value
        for key, value in results.corrected.values.items()
        if key.startswith(start)
    }


def _panel(canvas: Canvas, left: float, top: float, width: float, bottom: float, title: str) -> None:
    text, _, model = title.partition(", ")
    canvas.text(left + width / 2, top - 28, text, size=12, anchor="middle", bold=True)
    canvas.text(left + width / 2, top - 12, model, MUTED, 11, "middle")
    canvas.line([(left, bottom), (left + width, bottom)], RULE)
    for value, words, dashes in ((0.0, "chance", ""), (1.0, "ceiling", "4 3")):
        x = _x(left, width, value)
        canvas.line([(x, top - 4), (x, bottom)], MUTED, 1, dashes)
        canvas.text(x, bottom + 14, f"{value:g}", MUTED, 11, "middle")
        canvas.text(x, bottom + 27, words, MUTED, 10, "middle")


def _interval(canvas: Canvas, left: float, width: float, y: float, value: Interval, colour: Colour) -> None:
    low, high = (min(max(end, LEAST), MOST) for end in (value.low, value.high))
    ends = (_x(left, width, low), _x(left, width, high))
    canvas.line([(ends[0], y), (ends[1], y)], colour, 2)
    for x, cut, way in ((ends[0], low > value.low, -1), (ends[1], high < value.high, 1)):
        if cut:
            canvas.area([(x + 6 * way, y), (x, y - 4), (x, y + 4)], colour)
    canvas.dot(_x(left, width, min(max(value.value, LEAST), MOST)), y, colour)


def _x(left: float, width: float, value: float) -> float:
    return left + 8 + (width - 16) * (value - LEAST) / (MOST - LEAST)


# What it costs ------------------------------------------------------------------------------------------

CURVES = (
    ("random", "random exits (chance)", MUTED, "2 4"),
    ("max_prob", "largest probability", EASY, ""),
    ("learned", "learned (default)", CHANGE, ""),
    ("divergence_oracle", "divergence oracle (ceiling)", CEILING, "6 3"),
)


def trade_off(figures: Figures) -> Canvas:
    """Perplexity by the share of tokens that leave, from full depth to everybody at the first exit."""
    canvas = Canvas(690, 380, "Perplexity by the share of tokens that leave", (EASY, CHANGE, CEILING))
    fixed = {row["fraction"]: row["ppl"] for row in figures.rows(CURVE, signal="fixed")}
    ends = [(0.0, fixed[0]), (1.0, fixed[1])]
    low, high = ends[0][1], ends[1][1]
    left, right, top, bottom = 70.0, 440.0, 30.0, 300.0

    def place(share: float, ppl: float) -> tuple[float, float]:
        return left + (right - left) * share, bottom - (bottom - top) * (ppl - low) / (high - low)

    canvas.line([(left, top), (left, bottom), (right, bottom)], RULE)
    for share in (0.0, 0.5, 1.0):
        x, _ = place(share, low)
        canvas.text(x, bottom + 18, written(share, ".0%"), MUTED, 11, "middle")
    for ppl in (low, (low + high) / 2, high):
        canvas.text(left - 8, place(0, ppl)[1] + 4, f"{ppl:.1f}", MUTED, 11, "end")
    canvas.text(
        (left + right) / 2, bottom + 40, "share of the tokens that leave after block 0", anchor="middle"
    )
    canvas.text(left - 54, top - 12, "test perplexity (lower is better)")
    labels = []
    for name, label, colour, dashes in CURVES:
        rows = sorted(figures.rows(CURVE, signal=name), key=lambda row: row["shallow_ratio"])
        points = [ends[0], *((row["shallow_ratio"], row["ppl"]) for row in rows), ends[1]]
        canvas.line([place(*point) for point in points], colour, 2, dashes)
        labels.append((place(*points[-2])[1], label, colour, dashes))
    for index, (_, label, colour, dashes) in enumerate(sorted(labels, key=lambda entry: entry[0])):
        y = top + 40 + 24 * index
        canvas.line([(right + 16, y), (right + 40, y)], colour, 2, dashes)
        canvas.text(right + 46, y + 4, label, INK, 12)
    tokens = figures.rows(CURVE, signal="learned")[0]["tokens"]
    canvas.text(left, 366, f"The default run, {tokens:,} test tokens, one random seed", MUTED, 11)
    return canvas


# The stages ---------------------------------------------------------------------------------------------

DOES = {
    "check": "is all in order?",
    "prepare": "text to tokens",
    "pretrain": "train the model",
    "collect": "states, losses",
    "train_exits": "fit who decides",
    "sweep": "all signals",
    "evaluate": "your threshold",
    "suitability": "worth it at all?",
    "report": "one page",
    "track": "MLflow",
}


def stages(figures: Figures) -> Canvas:
    """The stages of dvc.yaml from left to right, with arrows where one reads what another wrote."""
    columns = stage_columns(figures.root)
    width, height, gap = 98.0, 46.0, 22.0
    canvas = Canvas(int(len(columns) * (width + gap) + 20), 190, "The stages of the pipeline", (ACCENT,))
    places: dict[str, tuple[float, float]] = {}
    for column, names in enumerate(columns):
        for row, name in enumerate(names):
            y = 95 + 62 * (row - (len(names) - 1) / 2)
            places[name] = (16 + column * (width + gap), y)
    for one, other in stage_edges(figures.root):
        (x0, y0), (x1, y1) = places[one], places[other]
        middle = x0 + width + gap / 2
        canvas.line([(x0 + width, y0), (middle, y0), (middle, y1)], MUTED)
        canvas.arrow((middle, y1), (x1, y1), MUTED)
    for name, (x, y) in places.items():
        canvas.box(x, y - height / 2, width, height, ACCENT)
        canvas.text(x + width / 2, y - 3, name, size=13, anchor="middle", bold=True)
        canvas.text(x + width / 2, y + 14, DOES.get(name, ""), MUTED, 11, "middle")
    return canvas
