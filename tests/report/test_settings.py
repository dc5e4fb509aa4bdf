"""What runs though it makes no sense is said, in the report and on the console; the defaults make sense."""

from __future__ import annotations

import logging
import re

import pytest

from offramp.params import load_params, read_params
from offramp.report.page import build_report
from offramp.report.settings import cautions, flatten
from pipeline.check import run as check
from tests.conftest import REPOSITORY, repository_params
from tests.fixtures.report_run import fabricate, settings


def said(**changes) -> list[str]:
    return cautions(flatten(repository_params(**changes).model_dump()))


def test_the_defaults_make_sense():
    assert cautions(flatten(read_params(REPOSITORY / "params.yaml").model_dump())) == []


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"pretrain__steps": 2}, "pretrain.steps = 2, 1 for each of 2 blocks: nothing is learnt"),
        ({"pretrain__evaluate_every": 41}, "pretrain.evaluate_every = 41 is more than the 40 steps"),
        ({"pretrain__evaluate_windows": 1}, "pretrain.evaluate_windows = 1: "),
        ({"threshold": 0.0}, "threshold = 0: every token that arrives leaves"),
        ({"threshold": 1.0}, "threshold = 1: no token leaves there"),
        (
            {"threshold": [0.5, 1.0], "model__block_layers": [1, 1, 1]},
            "threshold = 1 at exit 1: no token leaves there",
        ),
        ({"routing__control_windows": 1}, "routing.control_windows = 1: .* are of 1 window, on which"),
        ({"threshold": "risk", "exits__risk__tolerance": 0.9}, "exits.risk.tolerance = 0.9: "),
        ({"threshold": "risk", "exits__risk__delta": 0.9}, "exits.risk.delta = 0.9: "),
    ],
)
def test_what_runs_but_makes_no_sense_is_said(changes, sentence):
    (one,) = said(**changes)
    assert re.match(sentence, one)


def test_a_decaying_threshold_is_neither_0_nor_1():
    assert said(threshold=1.0, routing__decay=1.0) == said(threshold=0.0, routing__decay=1.0) == []


def test_the_report_shows_it_and_is_silent_otherwise(tmp_path):
    root = fabricate(tmp_path)
    page = build_report(root, settings()).read_text()
    assert "Caution." not in page
    page = build_report(root, settings() | {"threshold": 1.0, "routing.control_windows": 1}).read_text()
    assert page.count("<strong>Caution.</strong>") == 2 and "threshold = 1: no token leaves" in page


def test_it_is_said_on_the_console_before_anything_is_computed(tmp_path, caplog):
    for name in ("params.yaml", "dvc.yaml"):
        text = (REPOSITORY / name).read_text()
        (tmp_path / name).write_text(text.replace("threshold: quality", "threshold: 1.0"))
    for folder in ("src", "pipeline"):
        (tmp_path / folder).symlink_to(REPOSITORY / folder)
    with caplog.at_level(logging.WARNING):
        check(load_params("check", tmp_path), tmp_path)
    assert "threshold = 1: no token leaves there" in caplog.text
