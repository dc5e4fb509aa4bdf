"""Pictures show what the files hold, in colours of both papers."""

from __future__ import annotations

import json
import shutil
from xml.etree import ElementTree

import pytest

from docs.drawings import drawings
from docs.figures import Figures
from docs.stages import mermaid, stage_columns, stage_edges
from tests.conftest import REPOSITORY

NEEDED = ("params.yaml", "dvc.yaml", "metrics/routing.json", "metrics/plots/threshold_curve.csv")
NAMES = ["early-exit", "who-decides", "who-decides-all", "trade-off", "stages"]


@pytest.fixture
def root(tmp_path):
    """The files that pictures are drawn from, free to be changed."""
    (tmp_path / "metrics/plots").mkdir(parents=True)
    for name in NEEDED:
        shutil.copy(REPOSITORY / name, tmp_path / name)
    shutil.copytree(REPOSITORY / "studies/metrics", tmp_path / "studies/metrics")
    return tmp_path


def drawn(root, name):
    figures = Figures(root)
    (picture,) = drawings(figures, [name]).values()
    assert not figures.problems
    return picture


@pytest.mark.parametrize("name", NAMES)
def test_pictures_are_whole_and_have_two_papers(root, name):
    picture = drawn(root, name)
    canvas = ElementTree.fromstring(picture)
    width, height = float(canvas.get("width")), float(canvas.get("height"))
    for text in canvas.iter("{http://www.w3.org/2000/svg}text"):
        assert 0 <= float(text.get("x")) <= width and 0 <= float(text.get("y")) <= height
    assert "prefers-color-scheme: dark" in picture and "http://www.w3.org/2000/svg" in picture
    assert picture == drawn(root, name)


def test_a_picture_follows_its_file(root):
    before = drawn(root, "early-exit")
    file = root / "metrics/routing.json"
    values = json.loads(file.read_text())
    leave = values["exit_fraction"]["exit_0"]
    values["exit_fraction"]["exit_0"] = 0.61
    file.write_text(json.dumps(values))
    after = drawn(root, "early-exit")
    assert f"{100 * leave:.0f} % leave here" in before and "61 % leave here" in after


def test_a_training_without_results_has_no_panel(root):
    both = drawn(root, "who-decides").count("WikiText-2")
    (root / "studies/metrics/exit_signals.wikitext.json").unlink()
    assert both == 2 and drawn(root, "who-decides").count("WikiText-2") == 0


def test_what_cannot_be_drawn_is_a_problem(root):
    (root / "metrics/routing.json").unlink()
    figures = Figures(root)
    assert drawings(figures, ["early-exit", "nothing"]) == {}
    assert "metrics/routing.json is missing" in figures.problems[0] and "nothing" in figures.problems[1]


def test_the_map_has_every_stage_and_what_others_imply_is_left_out(root):
    edges = stage_edges(root)
    assert ("prepare", "pretrain") in edges and ("prepare", "collect") not in edges
    assert {"train_exits", "report"} <= {name for edge in edges for name in edge}
    columns = stage_columns(root)
    assert columns[0] == ["check"] and columns[-1] == ["track"]
    assert "    check --> prepare" in mermaid(root)
