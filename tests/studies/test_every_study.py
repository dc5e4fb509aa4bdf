"""Every study starts through the one entry point: tiny, all its arms, on each text that needs no download."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from studies.__main__ import main
from studies.common.study import HOME, studies
from studies.common.text import study_text
from tests.fixtures.study_results import home_of_studies

pytestmark = pytest.mark.slow

OWN = {"train": 20_000, "calibration": 6_000, "test": 6_000}
"""Characters of text of one's own, the smallest that every study of such text can use."""
KEPT = ("build", "metrics")
"""Folders of the checkout that a run of a study may write into, unless it is given a home of its own."""


def runs() -> list[tuple[str, str]]:
    """Every study with each of its texts that is on every machine."""
    names = []
    for name, study in studies().items():
        texts = [text for text in study.about.texts if text != "wikitext"]
        names += [(name, text) for text in [*texts, *(["own"] if study.about.own_text else [])]]
    return names


RUNS = runs()


@pytest.fixture(scope="module")
def own_files(tmp_path_factory) -> list[str]:
    """The options that name three files: addresses in which the beginning of every one is cut short."""
    folder, documents, options = tmp_path_factory.mktemp("own"), list(study_text("sotu").train), []
    for split, characters in OWN.items():
        text = "\n\n".join(documents.pop(0).text[:2_000] for _ in range(characters // 2_000))
        (folder / f"{split}.txt").write_text(text, encoding="utf-8")
        options += [f"--{split}", str(folder / f"{split}.txt")]
    return options


@pytest.fixture
def threads():
    """The number of threads as it was before, whatever a study sets."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def files(*folders: Path) -> dict[Path, int]:
    """Time of the last change of every file below the folders."""
    paths = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return {path: path.stat().st_mtime_ns for path in paths}


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize(("name", "text"), RUNS, ids=[" on ".join(run) for run in RUNS])
def test_a_study_prints_values_of_its_protocols_and_keeps_models_only(
    name, text, own_files, tmp_path, monkeypatch, capsys
):
    home, elsewhere = home_of_studies(tmp_path), tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    described, checkout = files(home), files(*(HOME / folder for folder in KEPT))
    main([name, *(own_files if text == "own" else ["--corpus", text]), "--tiny"], home)
    printed = [line.split("  ") for line in capsys.readouterr().out.splitlines()]
    assert {line[0] for line in printed} == set(
        studies()[name].protocols_on(text, ["published", "corrected"])
    )
    assert all(len(line) == 3 for line in printed) and len(printed) > 1
    written = files(home).keys() - described.keys()
    assert all(path.is_relative_to(home / "build/tiny" / text) for path in written), written
    assert files(home).items() >= described.items() and not files(elsewhere)
    assert files(*(HOME / folder for folder in KEPT)) == checkout
