"""Parameters by dotted name, and what is said of those that run but make no sense."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

FEW_STEPS = 10
"""Steps of a phase of training that are too few to learn anything."""
FEW_WINDOWS = 10
"""Windows on which a mean says next to nothing."""

Settings = Mapping[str, Any]
"""Parameters by dotted name; some may be missing, as no artifact records all of them."""


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as one level of dotted names, in their own order."""
    out: dict[str, Any] = {}
    for name, value in values.items():
        out |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return out


def cautions(settings: Settings) -> list[str]:
    """A sentence for everything in ``settings`` that a run is possible with, but that makes no sense."""
    return [sentence for rule in RULES for sentence in rule(settings)]


def _training(settings: Settings) -> Iterator[str]:
    steps, blocks = settings.get("pretrain.steps"), 1
    if steps is None:
        return
    if settings.get("pretrain.method") == "blockwise":
        blocks = len(settings.get("model.block_layers", [0]))
    if steps // blocks < FEW_STEPS:
        each = f", {steps // blocks} for each of {blocks} blocks" if blocks > 1 else ""
        yield f"pretrain.steps = {steps}{each}: nothing is learnt in so few steps"
    elif settings.get("pretrain.evaluate_every", 0) > steps // blocks:
        yield (
            f"pretrain.evaluate_every = {settings['pretrain.evaluate_every']} is more than the "
            f"{steps // blocks} steps of a phase: it is looked at once, and the last weights are kept"
        )
    if (windows := settings.get("pretrain.evaluate_windows", FEW_WINDOWS)) < FEW_WINDOWS:
        yield f"pretrain.evaluate_windows = {windows}: which step is best is chosen on next to no text"


def _thresholds(settings: Settings) -> Iterator[str]:
    if settings.get("routing.decay") is not None:  # moves every threshold away from 0 and 1
        return
    threshold = settings.get("threshold")
    values = threshold if isinstance(threshold, list) else [threshold]
    for exit, value in enumerate(values):
        where = f" at exit {exit}" if len(values) > 1 else ""
        if value == 0:
            yield f"threshold = 0{where}: every token that arrives leaves there, whatever its confidence"
        if value == 1:
            yield f"threshold = 1{where}: no token leaves there, since calibrated confidences are below 1"


def _measuring(settings: Settings) -> Iterator[str]:
    if (windows := settings.get("routing.control_windows", FEW_WINDOWS)) < FEW_WINDOWS:
        yield (
            f"routing.control_windows = {windows}: controls, headroom and attained are of {windows} "
            f"window{'s' * (windows > 1)}, on which chance decides; see their intervals, if there are any"
        )


def _promise(settings: Settings) -> Iterator[str]:
    if settings.get("threshold") != "risk":
        return
    for name, meaning in (("tolerance", "the risk allowed"), ("delta", "the chance to break it")):
        value = settings.get(f"exits.risk.{name}", 0)
        if value > 0.5:
            yield f"exits.risk.{name} = {value}: {meaning} is so high that nothing is promised"


RULES: tuple[Callable[[Settings], Iterator[str]], ...] = (_training, _thresholds, _measuring, _promise)
