"""A small canvas for pictures that read on light and on dark paper.

A picture brings its paper with it, light or dark as the reader's system asks, so that it reads on any page.
Text stays text. The same figures give the same bytes, whatever is installed.
"""

from __future__ import annotations

from collections.abc import Iterable
from xml.sax.saxutils import escape

from offramp.report.theme import INK, MUTED, PAPER, RULE, Colour

FONT = "system-ui, -apple-system, 'Segoe UI', 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"


class Canvas:
    """Shapes in the order in which they are drawn, in pixels from the top left."""

    def __init__(self, width: int, height: int, title: str, colours: Iterable[Colour] = ()):
        self.width, self.height, self.title = width, height, title
        self.colours = dict.fromkeys([PAPER, INK, MUTED, RULE, *colours])
        self._shapes: list[str] = []

    def text(
        self,
        x: float,
        y: float,
        words: str,
        colour: Colour = INK,
        size: int = 13,
        anchor: str = "start",
        bold: bool = False,
    ) -> None:
        """``anchor`` is start, middle or end."""
        weight = ' font-weight="600"' if bold else ""
        self._shapes.append(
            f'<text class="{colour.name}-fill" x="{x:.1f}" y="{y:.1f}" font-size="{size}" '
            f'text-anchor="{anchor}"{weight}>{escape(words)}</text>'
        )

    def line(
        self, points: Iterable[tuple[float, float]], colour: Colour, width: float = 1.5, dashes: str = ""
    ) -> None:
        """A line through points; ``dashes`` as SVG has them."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
        self._shapes.append(
            f'<polyline class="{colour.name}-line" points="{path}" stroke-width="{width:g}"{dashed}/>'
        )

    def area(self, points: Iterable[tuple[float, float]], colour: Colour, opacity: float = 1) -> None:
        """A filled polygon."""
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self._shapes.append(f'<polygon class="{colour.name}-fill" points="{path}" opacity="{opacity:g}"/>')

    def box(
        self, x: float, y: float, width: float, height: float, colour: Colour, fill: Colour = PAPER
    ) -> None:
        """A rounded rectangle with a border."""
        self._shapes.append(
            f'<rect class="{fill.name}-fill {colour.name}-edge" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" '
            f'height="{height:.1f}" rx="6" stroke-width="1.5"/>'
        )

    def dot(self, x: float, y: float, colour: Colour, radius: float = 4) -> None:
        """A filled circle."""
        self._shapes.append(f'<circle class="{colour.name}-fill" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}"/>')

    def arrow(self, start: tuple[float, float], end: tuple[float, float], colour: Colour) -> None:
        """A straight arrow that goes right, left, up or down."""
        (x0, y0), (x1, y1) = start, end
        length = abs(x1 - x0) + abs(y1 - y0)
        dx, dy = (x1 - x0) / length, (y1 - y0) / length
        base = (x1 - 8 * dx, y1 - 8 * dy)
        self.line([start, base], colour)
        self.area([end, (base[0] - 4 * dy, base[1] + 4 * dx), (base[0] + 4 * dy, base[1] - 4 * dx)], colour)

    def render(self) -> str:
        """The file's text."""
        size = f"{self.width} {self.height}"
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" width="{self.width}" '
                f'height="{self.height}" role="img" font-family="{FONT}">',
                f"<title>{escape(self.title)}</title>",
                "<style>",
                *(_rules(colour, colour.light) for colour in self.colours),
                "@media (prefers-color-scheme: dark) {",
                *(_rules(colour, colour.dark) for colour in self.colours),
                "}",
                "</style>",
                f'<rect class="{PAPER.name}-fill" width="{self.width}" height="{self.height}" rx="8"/>',
                *self._shapes,
                "</svg>",
                "",
            ]
        )


def _rules(colour: Colour, value: str) -> str:
    name = colour.name
    return (
        f".{name}-fill {{ fill: {value} }} .{name}-edge {{ stroke: {value} }} "
        f".{name}-line {{ fill: none; stroke: {value} }}"
    )
