"""Every number of params.yaml has two bounds and is finite; what lies beyond is refused by its name."""

from __future__ import annotations

import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from offramp.errors import UserError
from offramp.params import parse_params, read_params
from tests.conftest import REPOSITORY

BEYOND = (".inf", "-.inf", ".nan", "1e-320", "-1e-320", "1e308", str(2**63), str(-(2**63)), "1" + "0" * 400)
"""What no number of the file may be, as YAML writes it."""
OPTIONAL = {
    "pretrain.exit_weights": [1.0, 1.0],
    "pretrain.joint_classifier": {"label": "loss", "weight": 1.0},
    "pretrain.lora": {"rank": 8, "alpha": 16.0},
    "corpus.document_characters": 1000,
    "model.key_value_heads": 2,
    "model.exits_after": [1],
    "routing.decay": 1.0,
}
"""Numbers that the file leaves out."""


def defaults() -> dict[str, Any]:
    return YAML(typ="safe").load((REPOSITORY / "params.yaml").read_text())


def with_value(path: tuple[str | int, ...], value: Any) -> dict[str, Any]:
    """The file's values and those of OPTIONAL, with another one at ``path``."""
    values = defaults()
    for name, given in OPTIONAL.items():
        section, key = name.split(".")
        values[section][key] = deepcopy(given)
    part: Any = values
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    return values


def numbers(part: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The paths of all numbers."""
    if isinstance(part, dict | list):
        items = part.items() if isinstance(part, dict) else enumerate(part)
        return [number for key, value in items for number in numbers(value, (*path, key))]
    return [path] if isinstance(part, int | float) and not isinstance(part, bool) else []


NUMBERS = numbers(with_value(("window",), 128))


@pytest.mark.parametrize("path", NUMBERS, ids=lambda path: ".".join(map(str, path)))
def test_every_number_has_two_bounds_and_is_finite(path):
    name = ".".join(map(str, path))
    for beyond in BEYOND:
        value = YAML(typ="safe").load(f"value: {beyond}")["value"]
        with pytest.raises(UserError, match=f"^params.yaml: {name} = "):
            parse_params(with_value(path, value))


def test_no_number_is_left_out_of_this_test():
    assert len(NUMBERS) > 55


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("pretrain.clip_norm", float("inf"), "give a finite number, or null to clip nothing"),
        ("routing.decay", float("inf"), "give a finite number, or null for no decay"),
        ("routing.price", float("inf"), "give a finite number"),
        ("pretrain.weight_decay", 1e-320, "so near to 0 it has no effect; give at least 1e-12"),
        ("pretrain.learning_rate", 100.0, "Input should be less than or equal to 10"),
    ],
)
def test_the_message_says_what_to_write_instead(name, value, message):
    with pytest.raises(UserError, match=f"params.yaml: {name} = .*: {message}"):
        parse_params(with_value(tuple(name.split(".")), value))


def test_what_is_off_has_a_name():
    values = with_value(("pretrain", "clip_norm"), None)
    values |= {"pretrain": values["pretrain"] | {"joint_classifier": None, "lora": None, "weight_decay": 0.0}}
    values["routing"]["decay"] = None
    params = parse_params(values)
    assert params.pretrain.clip_norm is None and params.pretrain.weight_decay == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("window: 1" + "0" * 5000, "is not valid YAML"),
        ("window: 2024-13-45", "is not valid YAML"),
        ("window: 2024-01-01", "window = '2024-01-01'"),
        ("window: !!set {a, b}", "window = "),
        ("? [a, b]\n: 1", "keys must be str"),
        ("window: &x [*x]", "ircular"),
    ],
)
def test_what_is_no_plain_value_is_one_line(line, message, tmp_path: Path):
    file = tmp_path / "params.yaml"
    shutil.copy(REPOSITORY / "params.yaml", file)
    file.write_text(file.read_text().replace("window: 128", line))
    with pytest.raises(UserError, match=f"params.yaml.*{message}"):
        read_params(file)
