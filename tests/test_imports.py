"""Imports point one way: a room uses what stands below it, and nothing above it knows of what it serves."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import grimp
import pytest

from tests.conftest import REPOSITORY

LEVELS = [
    {"errors", "params", "vocabulary"},
    {"artifacts", "machine"},
    {"results"},
    {"checkpoints", "corpus", "nn"},
    {"models"},
    {"states"},
    {"exits"},
    {"routing", "training"},
    {"analysis"},
    {"systems"},
    {"tracking"},
    {"lineage"},
    {"report"},
    {"app"},
]
"""The rooms from the ground up: they import from lower levels, and from their own, in no circle."""

MAY_IMPORT = {
    "offramp": {"offramp"},
    "pipeline": {"pipeline", "offramp"},
    "studies": {"studies", "offramp"},
    "benchmarks": {"benchmarks", "offramp", "pipeline", "studies"},
    "docs": {"docs", "offramp", "benchmarks", "studies"},
}
SYSTEMS_SERVE = {"studies", "benchmarks"}
"""Who runs the earlier systems; no room of the product knows them."""


@pytest.fixture(scope="module")
def graph():
    if str(REPOSITORY) not in sys.path:
        sys.path.insert(0, str(REPOSITORY))
    packages = [package for package in MAY_IMPORT if find_spec(package)]
    return grimp.build_graph(*packages, cache_dir=None)


def room(module: str) -> str:
    """``states`` for offramp.states.collect, ``params`` for offramp.params."""
    return module.split(".")[1]


def imports(graph):
    """Every import between modules, also inside functions: who, whom."""
    return sorted(
        (module, imported)
        for module in graph.modules
        for imported in graph.find_modules_directly_imported_by(module)
    )


def test_every_module_stands_in_a_known_room(graph):
    known = set().union(*LEVELS)
    rooms = {room(module) for module in graph.modules if module.startswith("offramp.")}
    assert rooms == known


def test_packages_import_only_what_they_may(graph):
    wrong = [
        f"{module} imports {imported}"
        for module, imported in imports(graph)
        if imported.split(".")[0] not in MAY_IMPORT[module.split(".")[0]]
    ]
    assert not wrong, "\n".join(wrong)


def test_rooms_import_only_from_below(graph):
    level = {name: number for number, names in enumerate(LEVELS) for name in names}
    wrong = [
        f"{module} imports {imported}"
        for module, imported in imports(graph)
        if module.startswith("offramp.") and level[room(imported)] > level[room(module)]
    ]
    assert not wrong, "\n".join(wrong)


def test_rooms_of_one_level_import_each_other_in_no_circle(graph):
    for level in LEVELS:
        pairs = {
            (room(module), room(imported))
            for module, imported in imports(graph)
            if module.startswith("offramp.") and {room(module), room(imported)} <= level
        }
        uses = {name: {other for one, other in pairs if one == name and other != name} for name in level}
        while done := {name for name, others in uses.items() if not others}:
            uses = {name: others - done for name, others in uses.items() if name not in done}
        assert not uses, f"these rooms import each other: {uses}"


def test_only_studies_and_benchmarks_run_the_earlier_systems(graph):
    wrong = [
        f"{module} imports {imported}"
        for module, imported in imports(graph)
        if imported.startswith("offramp.systems.")
        and not module.startswith("offramp.systems.")
        and module.split(".")[0] not in SYSTEMS_SERVE
    ]
    assert not wrong, "\n".join(wrong)
