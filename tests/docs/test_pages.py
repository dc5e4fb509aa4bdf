"""Pages are written from templates, or not at all; what is wrong is told with template and line."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from docs.pages import check_pages, write_pages
from offramp.errors import UserError
from tests.conftest import REPOSITORY

README = """# A project

Perplexity is {{ json("metrics/routing.json", "ppl", ".2f") }}
{% for name in ["ppl", "full"] %}
| {{ name }} | {{ json("metrics/routing.json", name, ".1f") }} |
{% endfor %}
"""


@pytest.fixture
def root(tmp_path):
    (tmp_path / "metrics").mkdir()
    (tmp_path / "docs/templates").mkdir(parents=True)
    (tmp_path / "metrics/routing.json").write_text(json.dumps({"ppl": 25.168, "full": 24.809}))
    (tmp_path / "docs/measurements.yaml").write_text("")
    write(tmp_path, "README.md", README)
    write(tmp_path, "lineage.md", "# Lineage\n\nNo figure.\n")
    return tmp_path


def write(root, page, source):
    (root / f"docs/templates/{page}.j2").write_text(source)


def problems(root):
    with pytest.raises(UserError) as raised:
        write_pages(root)
    return str(raised.value).splitlines()


def test_pages_say_who_writes_them_and_take_their_figures_from_files(root):
    assert write_pages(root) == ["README.md", "docs/lineage.md"]
    text = (root / "README.md").read_text()
    assert text.startswith("<!-- Written by `python -m docs` from docs/templates/README.md.j2")
    assert text.endswith("# A project\n\nPerplexity is 25.17\n| ppl | 25.2 |\n| full | 24.8 |\n")
    assert "docs/templates/lineage.md.j2" in (root / "docs/lineage.md").read_text()


def test_a_page_that_differs_is_named(root):
    write_pages(root)
    check_pages(root)
    (root / "metrics/routing.json").write_text(json.dumps({"ppl": 25.4, "full": 24.809}))
    with pytest.raises(UserError, match=r"README\.md differs from what would be written\nrun `make docs`"):
        check_pages(root)
    write_pages(root)
    check_pages(root)
    (root / "docs/lineage.md").unlink()
    with pytest.raises(UserError, match=r"docs/lineage\.md differs"):
        check_pages(root)


def test_every_problem_is_told_with_template_line_call_and_file_and_nothing_is_written(root):
    write(root, "README.md", README + '\nIt is 24.99\n\n{{ json("metrics/none.json", "a") }}\n')
    write(root, "lineage.md", '\n{{ json("metrics/routing.json", "nll", ".1f") }}\n')
    assert problems(root) == [
        "docs/templates/README.md.j2:8: '24.99' is a decimal",
        "docs/templates/README.md.j2:10: json('metrics/none.json', 'a'): metrics/none.json is missing",
        "docs/templates/lineage.md.j2:2: json('metrics/routing.json', 'nll', '.1f'): "
        "metrics/routing.json has no key nll",
    ]
    assert not (root / "README.md").exists()


def test_a_problem_within_a_macro_or_a_loop_names_its_own_line(root):
    cell = '{% macro cell(name) %}\n{{ json("metrics/routing.json", name, ".1f") }}\n{% endmacro %}\n'
    write(root, "README.md", cell + '\n{{ cell("nll") }}\n')
    (problem,) = problems(root)
    assert problem.startswith("docs/templates/README.md.j2:2: json('metrics/routing.json', 'nll', '.1f')")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{{ nothing }}", "'nothing' is undefined"),
        ("{{ json( }}", "unexpected"),
        ("{{ json('metrics/routing.json') }}", "missing 1 required positional argument: 'key'"),
        ("{{ json('metrics/routing.json', 'ppl', 'no form') }}", "Invalid format specifier"),
    ],
)
def test_a_template_that_cannot_be_rendered_is_told_with_its_line(root, line, said):
    write(root, "lineage.md", f"# Lineage\n\n{line}\n")
    (problem,) = problems(root)
    assert problem.startswith(f"docs/templates/lineage.md.j2:3: {line}: ") and said in problem


def test_a_measurement_that_no_template_uses_is_told(root):
    entry = "values: {a: 1}, n: 1, date: 2026-11-23, machine: m, command: c, what: w"
    (root / "docs/measurements.yaml").write_text(f"old: {{{entry}}}\n")
    assert problems(root) == ["docs/measurements.yaml: no template uses old"]
    write(root, "lineage.md", "{{ measured('old', 'a') }}\n")
    write_pages(root)


def test_a_page_without_a_template_is_told(root):
    (root / "docs/stray.md").write_text("24.99")
    assert problems(root) == ["docs/stray.md has no template in docs/templates"]


def test_measurements_that_are_no_such_file_are_told_once(root):
    (root / "docs/measurements.yaml").unlink()
    write(root, "README.md", "{{ measured('old', 'a') }} {{ measured('old', 'b') }}\n")
    assert problems(root) == ["docs/measurements.yaml is missing"]


@pytest.mark.slow
def test_the_command_knows_its_options():
    shown = subprocess.run(
        [sys.executable, "-m", "docs", "--help"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert "--check" in shown.stdout
