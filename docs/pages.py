"""Pages from templates: README.md from docs/templates/README.md.j2, docs/x.md from docs/templates/x.md.j2.

Templates whose names begin with an underscore hold what others share, and make no page. Pictures are drawn.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError, TemplateSyntaxError

from docs.drawings import FOLDER as PICTURES
from docs.drawings import drawings
from docs.figures import Figures
from docs.measurements import PATH as MEASUREMENTS
from docs.prose import faults
from docs.writing import form, in_words
from offramp.artifacts.files import write_text
from offramp.errors import UserError

TEMPLATES = "docs/templates"
HEAD = "<!-- Written by `python -m docs` from {template}: change that file, not this one. -->\n\n"
AT_ROOT = ("README.md",)
"""Pages that stand in the root; all others are in docs/."""


def environment(root: Path) -> Environment:
    """How templates are read; without the functions that look figures up."""
    loaded = Environment(
        loader=FileSystemLoader(root / TEMPLATES),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    loaded.filters |= {"form": form, "in_words": in_words}
    return loaded


def rendered(root: Path) -> dict[str, str]:
    """All pages and pictures by their names below ``root``.

    Raises UserError that names everything wrong with the templates: figures that they state by themselves,
    figures that no file has, words that no longer hold, measurements that no template uses, pages without a
    template, and pictures that nothing draws.
    """
    templates, figures = environment(root), Figures(root)
    figures.measurements()  # what is wrong with that file is said once
    templates.globals |= figures.functions()
    pages, problems = {}, []
    for name in templates.list_templates(extensions=["j2"]):
        template, page = f"{TEMPLATES}/{name}", name.removesuffix(".j2")
        try:
            source = (root / template).read_text(encoding="utf-8")
            stated = faults(source, templates)
            problems += [f"{template}:{fault.line}: {fault.text!r} is {fault.why}" for fault in stated]
            if name.startswith("_"):
                continue
            text = templates.get_template(name).render()
        except (TemplateError, TypeError, ValueError) as error:
            problems.append(f"{template}:{_line(error, name)}: {_said(source, _line(error, name))}: {error}")
            continue
        head = HEAD.format(template=template)
        pages[page if page in AT_ROOT else f"docs/{page}"] = head + text
    pictures = drawings(figures, _shown(pages))
    problems += [problem.replace(f"{root}/", "") for problem in figures.problems]
    unused = sorted(figures.measurements().keys() - figures.used)
    problems += [f"{MEASUREMENTS}: no template uses {entry}" for entry in unused if not problems]
    strays = {f"docs/{path.name}" for path in (root / "docs").glob("*.md")} - pages.keys()
    problems += [f"{page} has no template in {TEMPLATES}" for page in sorted(strays) if not problems]
    undrawn = {f"{PICTURES}/{path.name}" for path in (root / PICTURES).glob("*")} - pictures.keys()
    problems += [f"{picture} is shown by no page" for picture in sorted(undrawn) if not problems]
    if problems:
        raise UserError("\n".join(dict.fromkeys(problems)))
    return pages | pictures


def _shown(pages: Mapping[str, str]) -> list[str]:
    """Names of the pictures that pages show."""
    places = re.compile(rf"{Path(PICTURES).name}/([\w-]+)\.svg")
    return sorted({name for text in pages.values() for name in places.findall(text)})


def write_pages(root: Path) -> list[str]:
    """Write all pages and pictures, or none where something is wrong with one.

    Returns their names below ``root``.
    """
    pages = rendered(root)
    for page, text in pages.items():
        write_text(root / page, text)
    return list(pages)


def check_pages(root: Path) -> None:
    """Raise UserError if a page is not what would be written now."""
    differing = [
        f"{page} differs from what would be written"
        for page, text in rendered(root).items()
        if not (root / page).exists() or (root / page).read_text(encoding="utf-8") != text
    ]
    if differing:
        raise UserError("\n".join([*differing, "run `make docs` and commit what it writes"]))


def _line(error: Exception, template: str) -> int:
    """Line of a template in which an error arose."""
    if isinstance(error, TemplateSyntaxError):
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    return next((frame.lineno or 0 for frame in reversed(frames) if frame.filename.endswith(template)), 0)


def _said(source: str, line: int) -> str:
    return source.splitlines()[line - 1].strip() if line else "?"
