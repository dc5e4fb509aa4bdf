"""The table of all parameters: names, defaults, words of params.yaml, bounds of src/offramp/params."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ruamel.yaml import YAML

from offramp.params import Params
from offramp.vocabulary import SIGNALS

_KEY = re.compile(r"^( *)(\w+):(?: +([^#]*?))? *(?:# ?(.*))?$")
_COMMENT = re.compile(r"^( *)# ?(.*)$")
CONTINUES = 8
"""Spaces from which on a line of comment goes on with that of the key above it."""

NAMED_ELSEWHERE = {"exits.confidence": SIGNALS}
"""What the schema checks by a rule of its own, and so does not list."""

PLAIN = {
    "corpus.hub_column": "hub: the column that holds the text",
    "corpus.split_seed": "of the draw that puts documents into splits",
    "model.width": "numbers that a token's state has",
    "model.heads": "attention heads, which share the width",
    "pretrain.learning_rate": "the highest of the schedule",
    "pretrain.weight_decay": "of AdamW",
    "pretrain.clip_norm": "longest gradient; longer ones are scaled to it",
    "pretrain.seed": "of the first weights and of the order of the text",
    "exits.risk.delta": "probability with which the promise may be broken",
    "exits.learning_rate": "where the classifier's begins",
    "exits.batch_size": "tokens",
    "exits.max_epochs": "most passes over the tokens",
    "exits.seed": "of the split of calibration documents and of the classifier's fit",
    "routing.curve_fractions": "shares of the tokens that leave, at which `sweep` runs every signal",
    "routing.seed": "of random exits and of the bootstrap",
}
"""Words for keys whose names say enough where they stand, among others of their kind."""


class Parameter(NamedTuple):
    """A knob, as the page of parameters shows it."""

    name: str
    default: str
    allowed: str
    words: str


class ParameterSection(NamedTuple):
    """The knobs under one top-level key of params.yaml."""

    name: str
    words: str
    parameters: list[Parameter]


def parameter_sections(root: Path) -> list[ParameterSection]:
    """Every knob of params.yaml in its order; knobs at the top level make up the section ``top level``."""
    text = (root / "params.yaml").read_text(encoding="utf-8")
    values, words = YAML(typ="safe").load(text), _comments(text)
    top = ParameterSection("top level", "", [])
    sections = [top]
    for name, value in values.items():
        if isinstance(value, dict):
            sections.append(ParameterSection(name, words.get(name, ""), _below(name, value, words)))
        else:
            top.parameters.append(_parameter(name, value, words))
    return sections


def _below(prefix: str, values: dict[str, Any], words: dict[str, str]) -> list[Parameter]:
    rows = []
    for key, value in values.items():
        name = f"{prefix}.{key}"
        if isinstance(value, dict):
            rows += [Parameter(name, "", "", words[name])] if words.get(name) else []
            rows += _below(name, value, words)
        else:
            rows.append(_parameter(name, value, words))
    return rows


def _parameter(name: str, value: Any, words: dict[str, str]) -> Parameter:
    return Parameter(
        name, json.dumps(value), " or ".join(_allowed(name)), words.get(name) or PLAIN.get(name, "")
    )


def _comments(text: str) -> dict[str, str]:
    """What params.yaml says of every key, by dotted name: the comment above it, beside it and below that."""
    said: dict[str, list[str]] = {}
    path: list[tuple[int, str]] = []
    above: list[str] = []
    for line in text.splitlines():
        if not line.strip():
            above = []
        elif comment := _COMMENT.match(line):
            goes_on = path and len(comment[1]) >= CONTINUES
            (said[_dotted(path)] if goes_on else above).append(comment[2].strip())
        elif key := _KEY.match(line):
            path = [*(entry for entry in path if entry[0] < len(key[1])), (len(key[1]), key[2])]
            said[_dotted(path)] = above + ([key[4].strip()] if key[4] else [])
            above = []
    return {name: " ".join(_choice(line) for line in lines) for name, lines in said.items()}


def _choice(line: str) -> str:
    """``auto   the quantile`` on a line of its own, as ``auto: the quantile``."""
    return re.sub(r"^(\w+) {2,}", r"\n\1: ", line)


def _dotted(path: list[tuple[int, str]]) -> str:
    return ".".join(name for _, name in path)


# Bounds -------------------------------------------------------------------------------------------------


def _allowed(name: str) -> list[str]:
    """What the schema lets a key be, in words."""
    if name in NAMED_ELSEWHERE:
        return [f"`{value}`" for value in NAMED_ELSEWHERE[name]]
    schema = _schema()
    place: dict[str, Any] = schema
    for part in name.split("."):
        place = _section(schema, place)["properties"][part]
    return _kinds(schema, place)


@cache
def _schema() -> dict[str, Any]:
    return Params.model_json_schema()


def _section(schema: dict[str, Any], place: dict[str, Any]) -> dict[str, Any]:
    if "$ref" in place:
        return schema["$defs"][place["$ref"].rpartition("/")[2]]
    return place


def _kinds(schema: dict[str, Any], place: dict[str, Any]) -> list[str]:
    place = _section(schema, place)
    if "anyOf" in place:
        return [kind for one in place["anyOf"] for kind in _kinds(schema, one)]
    if "enum" in place:
        return [f"`{value}`" for value in place["enum"]]
    if "const" in place:
        return [f"`{place['const']}`"]
    match place.get("type"):
        case "null":
            return ["`null`"]
        case "boolean":
            return ["`true`", "`false`"]
        case "string":
            return ["text"]
        case "array":
            several = f", at least {place['minItems']}" if "minItems" in place else ""
            return [f"list of: {' or '.join(_kinds(schema, place['items']))}{several}"]
        case "object":
            fields = ", ".join(
                f"{key}: {' or '.join(_kinds(schema, value))}" for key, value in place["properties"].items()
            )
            return [f"{{{fields}}}"]
        case kind:
            return [f"{'whole number' if kind == 'integer' else 'number'}{_bounds(place)}"]


def _bounds(place: dict[str, Any]) -> str:
    names = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
    bounds = [f"{sign} {place[name]}" for name, sign in names.items() if name in place]
    return f" {' and '.join(bounds)}" if bounds else ""
