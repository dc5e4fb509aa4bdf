"""params.yaml has the form in which DVC writes it, so that `-S` of any key can follow any other."""

from __future__ import annotations

import re
import shutil
from itertools import chain

import pytest
from dvc.utils.hydra import apply_overrides
from ruamel.yaml import YAML

from offramp.errors import UserError
from offramp.params import read_params, with_lists
from offramp.tracking.recorded import flatten
from tests.conftest import REPOSITORY

OTHER_SHAPES = {
    "threshold": ("[0.8,0.9]", "0.7"),
    "corpus.paths": ("[a.txt]", "[]"),
    "corpus.hub_name": ("a/b", "null"),
    "model.exits_after": ("[10,20]", "[]"),
    "model.block_layers": ("[1,1,1]", "[2,2]"),
    "model.key_value_heads": ("2", "null"),
    "pretrain.exit_weights": ("[1.0,2.0]", "[]"),
    "pretrain.joint_classifier": ("{label:loss,weight:1.0}", "null"),
    "pretrain.lora": ("{rank:8,alpha:16}", "null"),
    "exits.hidden": ("[]", "[16]", "[128,128]"),
    "routing.curve_fractions": ("[0.5]", "[0.1,0.2,0.3]"),
    "routing.decay": ("1.0", "null"),
}
"""Keys whose values may be a list, a mapping or nothing, with values that follow each other."""


@pytest.fixture
def params(tmp_path):
    return shutil.copy(REPOSITORY / "params.yaml", tmp_path / "params.yaml")


def comments(text):
    return sorted(re.findall(r"#.*$", text, re.MULTILINE))


def test_a_new_threshold_is_a_diff_of_one_line(params):
    before = params.read_text().splitlines()
    apply_overrides(params, ["threshold=0.7"])
    after = params.read_text().splitlines()
    assert [(a, b) for a, b in zip(before, after, strict=True) if a != b] == [
        ("threshold: quality", "threshold: 0.7")
    ]


def test_one_item_may_stand_for_a_list_of_it(params):
    apply_overrides(params, ["corpus.source=files", "corpus.paths=my.txt", "exits.hidden=64"])
    read = read_params(params)
    assert read.corpus.paths == ["my.txt"] and read.exits.hidden == [64]
    written = flatten(YAML(typ="safe").load(params))
    assert written["corpus.paths"] == "my.txt"  # as dvc.lock will have it
    assert with_lists(written) == flatten(read.model_dump())
    apply_overrides(params, ["model.exits_after=10", "routing.curve_fractions=half"])
    with pytest.raises(UserError, match=r"curve_fractions\.0 = 'half'"):
        read_params(params)


def test_the_defaults_are_those_of_the_file():
    """`cp params.yaml src/offramp/params/defaults.yaml` where a default was changed."""
    assert (REPOSITORY / "src/offramp/params/defaults.yaml").read_text() == (
        REPOSITORY / "params.yaml"
    ).read_text()


@pytest.mark.parametrize("backwards", [False, True])
def test_every_key_can_be_set_after_every_other(params, backwards):
    before = params.read_text()
    overrides = list(chain(*([f"{key}={value}" for value in values] for key, values in OTHER_SHAPES.items())))
    for override in overrides[::-1] if backwards else overrides:
        apply_overrides(params, [override])
        key, _, value = override.partition("=")
        written = YAML(typ="safe").load(params)
        for name in key.split("."):
            written = written[name]
        assert str(written).replace(" ", "").replace("'", "") == value.replace("null", "None")
    assert comments(params.read_text()) == comments(before)


def test_all_keys_set_to_what_they_are_change_no_line(params):
    before = params.read_text()
    flat = flatten(YAML(typ="safe").load(params))
    overrides = [
        f"{key}={value}"
        for key, value in flat.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    ]
    assert len(overrides) > 40
    apply_overrides(params, overrides)
    assert params.read_text() == before
