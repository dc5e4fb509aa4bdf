"""Reading params.yaml, and saying in a line what is wrong with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from ruamel.yaml import YAML, YAMLError

from offramp.errors import UserError
from offramp.params.declared import Declared
from offramp.params.numbers import OneOrMore
from offramp.params.schema import Params


def read_params(path: Path = Path("params.yaml")) -> Params:
    """Read and validate params.yaml; UserError names the key, the value and the remedy."""
    try:
        values = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} is missing; run from the root of the project") from None
    except (YAMLError, ValueError) as error:  # ValueError: of numbers and dates that are none
        raise UserError(f"{path} is not valid YAML: {error}") from None
    return parse_params(values, path.name)


def parse_params(values: Any, source: str = "params.yaml") -> Params:
    """Validate what a YAML file held; UserError names ``source``, wrong keys, their values and the remedy."""
    try:
        text = json.dumps(values, default=str)  # dates are the text that they were
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{source}: {error}; give plain sections, lists, numbers and texts") from None
    try:
        return Params.model_validate_json(text)
    except ValidationError as error:
        problems = dict.fromkeys(_explain(problem, source) for problem in error.errors())
        raise UserError("\n".join(problems)) from None


def default_values() -> dict[str, Any]:
    """What params.yaml says as Offramp brings it, unchecked; a project's own file need not say it any more.

    ``defaults.yaml`` beside this module is a copy of the repository's params.yaml.
    """
    return YAML(typ="safe").load(Path(__file__).with_name("defaults.yaml").read_text(encoding="utf-8"))


def with_lists(values: dict[str, Any]) -> dict[str, Any]:
    """Values by dotted name, as a YAML file or dvc.lock has them, with lists where one item stands for it."""
    lists = _lists(Params)
    single = (str, int, float)
    return {
        key: [value] if key in lists and isinstance(value, single) else value for key, value in values.items()
    }


def _lists(section: type[BaseModel], prefix: str = "") -> set[str]:
    """The dotted names of the parameters that are lists."""
    names = set()
    for name, field in section.model_fields.items():
        if OneOrMore in field.metadata:
            names.add(prefix + name)
        elif isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            names |= _lists(field.annotation, f"{prefix}{name}.")
    return names


def load_params(stage: str, root: Path = Path(".")) -> Declared:
    """Validate all of params.yaml, then return what dvc.yaml declares for ``stage``."""
    params = read_params(root / "params.yaml")
    declared = list(read_stages(root)[stage].get("params", []))
    return Declared(stage, params, declared)


def read_stages(root: Path = Path(".")) -> dict[str, dict[str, Any]]:
    """What dvc.yaml says of every stage, by name, in the order in which they run."""
    stages: dict[str, dict[str, Any]] = YAML(typ="safe").load(
        (root / "dvc.yaml").read_text(encoding="utf-8")
    )["stages"]
    return stages


OFF = {"pretrain.clip_norm": ", or null to clip nothing", "routing.decay": ", or null for no decay"}
"""How to say that a number has no limit, or is not wanted, by its parameter."""


def _explain(problem: ErrorDetails, source: str) -> str:
    """What pydantic found wrong, as one line for whoever wrote the file."""
    keys = [str(part) for part in problem["loc"]]
    if keys[:1] == ["threshold"]:  # a union: pydantic complains once per member
        given = f"{source}: threshold = {problem['input']!r}"
        rules = '"auto", "quality", "risk", "budget" or "price"'
        return f"{given}: give a number from 0 to 1, one per exit, or {rules}"
    where = ".".join(keys)
    value = "" if problem["type"] in ("missing", "value_error") else f" = {problem['input']!r}"
    message = {
        "extra_forbidden": "unknown key; remove it or correct its name (params.yaml lists every key)",
        "missing": "missing; params.yaml in the repository lists every key with its default",
        "finite_number": f"give a finite number{OFF.get(where, '')}",
    }.get(problem["type"], problem["msg"].removeprefix("Value error, "))
    return f"{source}: {where}{value}: {message}" if where else f"{source}: {message}"
