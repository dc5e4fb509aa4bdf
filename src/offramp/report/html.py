"""Pages in the house style: one style sheet, and figures whose colours follow the reader's scheme."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from offramp.report.figures import Figure
from offramp.report.theme import TINT, Colour

STYLE = Path(__file__).with_name("style.css.j2")


def page_of(template: Path, exits: list[dict[str, Any]], colours: list[Colour], **values: Any) -> str:
    """A page in the house style; ``exits`` has an entry for each exit that colours tokens, maybe none.

    Templates may include those that stand beside the style sheet.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(STYLE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    named = {"exits": exits, "colours": colours}
    style = environment.from_string(STYLE.read_text(encoding="utf-8")).render(tint=f"{TINT:.0%}", **named)
    return environment.from_string(template.read_text(encoding="utf-8")).render(
        style=Markup(style), **named, **values
    )


def inline(figure: Figure, colours: list[Colour]) -> str:
    """The figure's SVG for the page: unique ids, the reader's font, colours as CSS variables."""
    svg = figure.svg[figure.svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(
        r'<svg [^>]*?viewBox="([^"]*)"[^>]*>',
        rf'<svg viewBox="\1" role="img" aria-label="{figure.title}">',
        svg,
    )
    svg = re.sub(r'\bid="', f'id="{figure.name}-', svg)
    svg = svg.replace("url(#", f"url(#{figure.name}-").replace('xlink:href="#', f'href="#{figure.name}-')
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", svg)
    for colour in colours:
        svg = svg.replace(colour.light, f"var(--{colour.name})")
    return svg
