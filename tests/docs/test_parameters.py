"""The page of parameters says what params.yaml and the schema say."""

from __future__ import annotations

import shutil

import pytest

from docs.parameters import PLAIN, parameter_sections
from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def knobs():
    return {knob.name: knob for section in parameter_sections(REPOSITORY) for knob in section.parameters}


def test_bounds_and_choices_are_those_of_the_schema(knobs):
    assert knobs["exits.risk.delta"].allowed == "number > 0 and < 1"
    assert knobs["routing.kv"].allowed == "`propagate` or `recompute` or `drop`"
    assert knobs["model.block_layers"].allowed == "list of: whole number > 0 and <= 10000, at least 2"
    assert "`auto`" in knobs["threshold"].allowed and "`saturation`" in knobs["exits.confidence"].allowed


def test_every_knob_has_words(knobs):
    assert [name for name, knob in knobs.items() if not knob.words] == []


def test_words_that_are_given_apart_are_of_keys_that_exist(knobs):
    assert PLAIN.keys() <= knobs.keys()


def test_defaults_and_words_come_from_the_file(tmp_path):
    text = (REPOSITORY / "params.yaml").read_text(encoding="utf-8")
    assert "keep_first: 0" in text
    shutil.copy(REPOSITORY / "params.yaml", tmp_path)
    changed = text.replace("keep_first: 0   ", "keep_first: 3   ").replace("tokens at a", "words at a")
    (tmp_path / "params.yaml").write_text(changed, encoding="utf-8")
    knobs = {knob.name: knob for section in parameter_sections(tmp_path) for knob in section.parameters}
    assert knobs["routing.keep_first"].default == "3" and "words at a" in knobs["routing.keep_first"].words
