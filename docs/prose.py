"""What a template may say in its own words: no figure.

A figure is a number that someone measured, and must come from a file through an expression. Refused in the
text of a template, and in strings of its expressions, is whatever looks like one:

* a decimal (0.5), a power (10^8), a whole number from 100 on (237,952);
* a whole number with a unit beside it: a per cent, a time, a size, a speed, nats, bits, "x" for "times as";
* a whole number after "perplexity";
* a number in words with a time or "times" after it ("ten to fifteen minutes", "three times", "an hour",
  "twice as"), and a fraction in words ("a fifth", "two thirds").

Whole numbers below 100 without a unit pass: they count what a reader can count (two exits, layer 20 of 30).
So do names (SmolLM2, AVX-512, bf16), versions (2.13.0, Python >= 3.11), arXiv numbers, and all that stands in
code, inline code, comments, and targets of links: those are to be typed, not believed. Words such as "most"
and "half of" pass too; ``given`` holds them to a file.

Expressions may not smuggle figures in: outside the calls that look a figure up, numbers other than 0 and 1
are refused. A constant of definition is written ``constant(value, why)``, and the reason is asked for.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from jinja2 import Environment, nodes

LOOK_UP = frozenset(
    (
        *("json", "row", "rows", "param", "study", "seeds", "paired", "claims", "questions"),
        *("benchmark", "has_benchmark", "benchmark_table", "benchmark_machine", "benchmark_origins"),
        *("measured", "measurement", "headline", "checkpoint_study", "smollm2_command"),
    )
)
"""Calls that look a figure up; what they are given says where, not how much."""

LEAST = 100
"""Whole numbers from which on they are refused wherever they stand."""

EXPRESSION = "\N{OBJECT REPLACEMENT CHARACTER}"
"""What stands for an expression of the template in the text that is looked through."""

_TEMPLATE_TAGS = re.compile(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", re.DOTALL)
_NOT_PROSE = re.compile(
    r"^[ ]{0,3}```.*?^[ ]{0,3}```[ \t]*$"  # code
    r"|(?<=\n\n)(?:[ ]{4}.*\n)+"  # indented code
    r"|<!--.*?-->"
    r"|(?P<tick>`+)(?:(?!\n\n).)+?(?P=tick)"
    r"|(?<=\])\([^)\n]*\)"  # target of a link
    r"|https?://\S+",
    re.DOTALL | re.MULTILINE,
)
_NUMBER = re.compile(r"(?<![\w.])(?<!\w-)[-+]?\d+(?:,\d{3})*(?:\.\d+)*(?P<power>\^-?\d+)?")
_VERSION_OF = re.compile(r"(?:Python(?: >=)?|arXiv)[\s:]$")
_UNIT = re.compile(
    r"x\b|[ ]?(?:%|(?:per cent|percent|times|points?|nats?|bits?|bytes?|[kKMGT]i?B|k|M|million|thousand"
    r"|ms|s|seconds?|min|minutes?|h|hours?|days?|tokens/s|tokens per second)\b)"
)
_PERPLEXITY = re.compile(r"perplexit(?:y|ies)(?:\s+[a-z]+){0,2}\s+$")
_COUNT = (
    "(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|fifteen|twenty|thirty|forty|fifty|sixty"
    "|seventy|eighty|ninety|a hundred)"
)
_IN_WORDS = re.compile(
    rf"\b{_COUNT}(?:\s+(?:to|or)\s+{_COUNT})?\s+(?:times|per cent|seconds|minutes|hours|days|nats)\b"
    r"|\b(?:half an|a quarter of an|one|an) hour\b|\b(?:one|a) minute\b|\b(?:twice|half) (?:as|again)\b"
    r"|\b(?:a|an|one|two|three|four|five|six|seven|eight|nine)\s+"
    r"(?:third|quarter|fifth|sixth|seventh|eighth|ninth|tenth)s?\b(?!-)",
    re.IGNORECASE,
)


class Fault(NamedTuple):
    """A figure that a template states by itself."""

    line: int
    text: str
    """The figure, or the expression that it stands in."""
    why: str


def faults(source: str, environment: Environment) -> list[Fault]:
    """All figures that a template states by itself, in the order of its lines.

    Raises jinja2.TemplateSyntaxError for a template that cannot be read.
    """
    seen = [*_in_text(prose(source)), *_in_expressions(environment.parse(source))]
    return sorted(seen, key=lambda fault: fault.line)


def prose(source: str) -> str:
    """The text of a template: an EXPRESSION for each of its tags, blanks for all that is no prose; newlines
    stay."""
    text = _TEMPLATE_TAGS.sub(lambda tag: EXPRESSION + "\n" * tag[0].count("\n"), source)
    return _NOT_PROSE.sub(lambda part: re.sub(r"[^\n]", " ", part[0]), text)


def _in_text(text: str, line: int = 1) -> Iterator[Fault]:
    for match in _NUMBER.finditer(text):
        if why := _why_refused(match, text[: match.start()], text[match.end() :]):
            yield Fault(line + text.count("\n", 0, match.start()), _around(text, match), why)
    for match in _IN_WORDS.finditer(text):
        yield Fault(line + text.count("\n", 0, match.start()), _around(text, match), "a figure in words")


def _why_refused(match: re.Match[str], before: str, after: str) -> str:
    """Why a number is a figure; empty if it is none."""
    whole, *decimals = match[0].lstrip("+-").partition("^")[0].replace(",", "").split(".")
    if len(decimals) > 1 or _VERSION_OF.search(before):
        return ""
    if match["power"]:
        return "a power"
    if decimals:
        return "a decimal"
    if int(whole) >= LEAST:
        return f"a whole number from {LEAST} on"
    if _UNIT.match(after):
        return "a number with a unit"
    return "a perplexity" if _PERPLEXITY.search(before) else ""


def _around(text: str, match: re.Match[str]) -> str:
    """A match with the word after it, which often is the unit, on one line."""
    rest = re.match(r"[ ]?[^\s]*", text[match.end() :])
    return " ".join((match[0] + (rest[0] if rest else "")).replace(EXPRESSION, "").split())


def _in_expressions(node: nodes.Node) -> Iterator[Fault]:
    if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Name):
        name = node.node.name
        if name in LOOK_UP:
            return
        if name == "constant":
            if not _has_reason(node):
                yield Fault(node.lineno, "constant(...)", "a constant without a reason, its second argument")
            return
        if name == "given":
            if not node.args or not _looks_up(node.args[0]):
                yield Fault(node.lineno, "given(...)", "a condition that looks nothing up")
            return
    if isinstance(node, nodes.TemplateData):
        return
    if isinstance(node, nodes.Const):
        yield from _in_constant(node)
        return
    if isinstance(node, nodes.Filter):  # what a filter is given is a form
        if node.node is not None:
            yield from _in_expressions(node.node)
        return
    for child in node.iter_child_nodes():
        yield from _in_expressions(child)


def _in_constant(node: nodes.Const) -> Iterator[Fault]:
    if isinstance(node.value, str):
        yield from _in_text(prose(node.value), node.lineno)
    elif isinstance(node.value, int | float) and node.value not in (0, 1):
        yield Fault(node.lineno, str(node.value), "a number in an expression")


def _has_reason(call: nodes.Call) -> bool:
    given = [*call.args[1:2], *(argument.value for argument in call.kwargs if argument.key == "why")]
    return any(isinstance(why, nodes.Const) and str(why.value).strip() for why in given)


def _looks_up(condition: nodes.Node) -> bool:
    """Whether a condition looks something up, or uses a variable that may have."""
    return isinstance(condition, nodes.Call | nodes.Name) or any(condition.find_all((nodes.Call, nodes.Name)))
