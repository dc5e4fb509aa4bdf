"""Links of README.md and docs/ lead somewhere, on GitHub and in the site that `make docs` builds."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from ruamel.yaml import YAML

from tests.conftest import REPOSITORY
from tests.docs.pages import PAGES, anchors, blocks, links

LONGEST_README = 160
"""Lines: two screens, a picture and a figure."""


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page):
    for link in links(page):
        if link.startswith("https://"):
            continue
        target, _, anchor = link.partition("#")
        file = (REPOSITORY / page).parent / target if target else REPOSITORY / page
        assert file.is_file(), f"{page}: {link}"
        assert not anchor or anchor in anchors(file), f"{page}: {link}"


def test_readme_is_short():
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()) <= LONGEST_README


def test_every_page_is_in_the_menu_of_the_site():
    text = re.sub(r"!!python\S+", "", (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = set(re.findall(r"[\w/-]+\.md", str(YAML(typ="safe").load(text)["nav"])))
    assert listed == {page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")}


MADE_ELSEWHERE = ("metrics/gpu.json",)
"""Results for which a machine is needed that has not been had."""


def test_files_that_pages_name_exist():
    """Of the folders whose files are in git; results and artifacts are made later."""
    named = re.compile(r"`((?:src|docs|studies|metrics|pipeline)/[\w./-]+\.(?:py|csv|json|yaml|md))`")
    for page in PAGES:
        for name in named.findall((REPOSITORY / page).read_text(encoding="utf-8")):
            assert (REPOSITORY / name).exists() or name in MADE_ELSEWHERE, f"{page}: {name}"


@pytest.mark.slow
def test_the_site_is_built_and_loads_nothing_from_the_network(tmp_path):
    built = subprocess.run(
        [
            sys.executable,
            "-m",
            "mkdocs",
            "build",
            "--strict",
            "--quiet",
            "-d",
            str(tmp_path / "site"),
        ],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > len(PAGES) - 1
    for page in pages:
        html = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe)[^>]*\ssrc="?([^"\s>]+)', html)
        loaded += re.findall(r'<link[^>]*rel="?(?:stylesheet|preconnect|preload)[^>]*href="?([^"\s>]+)', html)
        assert not [name for name in loaded if re.match(r"(?:https?:)?//", name)], page
        assert "class=mermaid" not in html and 'class="mermaid"' not in html  # its script is on a CDN


@pytest.mark.slow
def test_the_python_of_the_quick_start_runs(reduced_run):
    (code,) = blocks("docs/python.md", "python")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=reduced_run,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 4
