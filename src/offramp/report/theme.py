"""Names and colours of the report; each colour has a light and a dark variant, safe for colour-blind readers.

Figures are drawn with the light colours; on the page every one of them becomes a CSS variable, so that one
drawing serves both colour schemes. Exits run along a ramp whose lightness changes with depth, like its hue.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Colour:
    """A colour of light paper and its counterpart on dark, under one name."""

    name: str
    light: str
    dark: str


PAPER = Colour("paper", "#ffffff", "#15171b")
INK = Colour("ink", "#1d2127", "#e4e6ea")
MUTED = Colour("muted", "#646b76", "#9aa1ac")
RULE = Colour("rule", "#dfe2e7", "#31363e")
ACCENT = Colour("accent", "#0a66b0", "#62b0f2")

SIGNALS = {
    "learned": ACCENT,
    "max_prob": Colour("max-prob", "#c2551b", "#f0975f"),
    "entropy": Colour("entropy", "#1f8560", "#55c79b"),
    "margin": Colour("margin", "#98509a", "#d696d8"),
    "max_logit": Colour("max-logit", "#8b7500", "#d3bb4a"),
    "max_minus_mean": Colour("max-minus-mean", "#4d6f78", "#93b9c3"),
    "margin_prob": Colour("margin-prob", "#b03a5b", "#ee8aa6"),
    "saturation": Colour("saturation", "#5a7d1a", "#a5cf5a"),
    "patience": Colour("patience", "#6b5a48", "#bfa98f"),
}
"""Confidences that routing can use; every other signal in a table is a control and drawn in grey."""

TINT = 0.3
"""Share of an exit's colour in the paper behind its tokens; text on it keeps a contrast of 7."""

_RAMP = {"light": ("#e09600", "#c2487f", "#3a4aa6"), "dark": ("#f2b440", "#e27aa8", "#8795fa")}


def exit_colours(exits: int) -> list[Colour]:
    """One colour per exit from shallow (amber) through rose to full depth (indigo)."""
    places = [index / (exits - 1) for index in range(exits)] if exits > 1 else [1.0]
    return [
        Colour(f"exit-{k}", _ramp("light", place), _ramp("dark", place)) for k, place in enumerate(places)
    ]


def exit_name(index: int, exits: int) -> str:
    """What tables and figures call an exit."""
    return "full depth" if index == exits - 1 else f"exit {index}"


def palette(exits: int) -> list[Colour]:
    """Every colour of a page with so many exits; names and light values are unique."""
    return [PAPER, INK, MUTED, RULE, *SIGNALS.values(), *exit_colours(exits)]


def _ramp(scheme: str, place: float) -> str:
    stops = _RAMP[scheme]
    position = place * (len(stops) - 1)
    index = min(int(position), len(stops) - 2)
    low, high = (bytes.fromhex(stop[1:]) for stop in stops[index : index + 2])
    weight = position - index
    return "#" + bytes(round(a + (b - a) * weight) for a, b in zip(low, high)).hex()
