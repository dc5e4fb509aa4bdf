"""The page as a file: complete in itself, reproducible, safe, and whole for any number of exits."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from offramp.errors import UserError
from offramp.report.page import build_report
from tests.fixtures.report_run import TEXT, fabricate, settings

FIGURES = {
    "trade_off_ppl",
    "trade_off_agreement",
    "learning_train_loss",
    "learning_calibration_ppl",
    "loss_distribution",
    "reliability",
    "curve_shallow_ratio",
    "exits_by_position",
    "savings",
}


class Page(HTMLParser):
    """Attributes of every element, the tokens of the coloured text, and the contents of scripts."""

    def __init__(self, html: str):
        super().__init__()
        self.html, self.elements, self.tokens, self.scripts = html, [], [], []
        self._into: list | None = None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.elements.append((tag, attributes))
        if "data-l" in attributes:
            self.tokens.append((attributes, ""))
            self._into = self.tokens
        elif tag == "script":
            self._into = self.scripts

    def handle_endtag(self, tag):
        self._into = None

    def handle_data(self, data):
        if self._into is self.tokens:
            self.tokens[-1] = (self.tokens[-1][0], data)
        elif self._into is self.scripts:
            self.scripts.append(data)


@pytest.fixture(scope="module")
def reports(tmp_path_factory) -> dict[int, Path]:
    """A report folder for every number of exits looked at."""
    roots = {exits: fabricate(tmp_path_factory.mktemp("run"), exits) for exits in (2, 3)}
    return {exits: build_report(root, settings(exits)).parent for exits, root in roots.items()}


@pytest.fixture(params=[2, 3], ids=["2 exits", "3 exits"])
def built(request, reports) -> tuple[int, Path, Page]:
    """Exits, the report folder, its parsed page."""
    report = reports[request.param]
    return request.param, report, Page((report / "index.html").read_text(encoding="utf-8"))


def test_nothing_is_fetched(built):
    _, _, page = built
    for tag, attributes in page.elements:
        assert tag not in ("link", "img", "iframe", "base", "object", "embed"), tag
        assert "src" not in attributes
        assert attributes.get("href", "#").startswith("#")
    assert all(target.startswith("#") for target in re.findall(r"url\(\s*['\"]?([^)]*)", page.html))
    assert "@import" not in page.html
    assert "://" not in page.html


def test_every_figure_is_on_the_page_and_in_a_file(built):
    _, report, page = built
    assert {path.stem for path in (report / "figures").glob("*.svg")} == FIGURES
    assert {attributes.get("id") for tag, attributes in page.elements if tag == "figure"} == FIGURES
    labels = [attributes["aria-label"] for tag, attributes in page.elements if tag == "svg"]
    assert len(set(labels)) == len(FIGURES)


def test_figures_share_a_page_without_sharing_ids_or_fixed_colours(built):
    _, _, page = built
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    references = {attributes["href"][1:] for _, attributes in page.elements if "href" in attributes}
    references |= set(re.findall(r"url\(#([^)]*)\)", page.html))
    assert references and references <= set(ids)
    drawings = page.html[page.html.index("<h2>Figures") : page.html.index("<h2>Test text")]
    assert not re.findall(r"#[0-9a-f]{6}\b", drawings), "every colour is a variable of the colour scheme"
    named = set(re.findall(r"var\(--([a-z0-9-]+)\)", page.html))
    assert named <= set(re.findall(r"--([a-z0-9-]+):", page.html))


def test_whether_to_exit_early_at_all_is_answered_with_a_row_per_exit(built):
    exits, _, page = built
    section = page.html[page.html.index("exit early at all?") : page.html.index("<h2>Figures")]
    assert "Worth a try: attainable is a saving of 16% of the FLOPs at 1% more perplexity." in section
    assert (
        section.count('<th scope="row">') == exits
        and section.count("<small>by the clock: inconclusive</small>") == exits - 1
    )
    assert "50.0% at the perplexity of full depth" in section and "agreement, raw" in section
    assert "16.0% [14.0%, 18.0%] at 1% more perplexity (random exits 3.2%)" in section
    assert len(re.findall(r'"can leave, (?:raw|tuned)">27.0%</td>', section)) == 2 * (exits - 1), (
        "raw and tuned, of every early exit"
    )


def test_text_reads_as_the_text_with_an_exit_per_token(built):
    exits, _, page = built
    assert "".join(text for _, text in page.tokens)[:60] in TEXT
    assert len(page.tokens) == settings()["report"]["text_tokens"] - 1, "the end of a document is not shown"
    assert {attributes["class"] for attributes, _ in page.tokens} == {f"e{k}" for k in range(exits)}
    for attributes, _ in page.tokens:
        assert ("data-c" in attributes) == (attributes["class"] != f"e{exits - 1}")


def test_corpus_text_cannot_become_markup(built):
    _, _, page = built
    assert sum(tag == "script" for tag, _ in page.elements) == 1
    assert "alert" not in "".join(page.scripts)
    assert "&lt;script&gt;" in re.sub(r"</?span[^>]*>", "", page.html)


def test_the_first_screen_answers(built):
    _, _, page = built
    first = page.html[page.html.index("<h1>") : page.html.index("<h2>What was run")]
    title = re.search(r"<title>(.*?)</title>", page.html).group(1)
    assert title.startswith("Early exit at threshold 0.75") and title in first
    assert first.count('<th scope="row">') == 4, "allowances"
    for expected in ("+0.5%", "+1%", "0.870", "150,000 held-out calibration tokens"):
        assert expected in first
    assert "<code>dvc exp run -S threshold=0.87</code>" in re.sub("</?span>", "", first)
    assert first.index("trade_off_ppl") < first.index("trade_off_agreement")
    assert 'class="warned"' not in page.html


def test_the_page_says_when_and_from_which_commit_it_was_measured(built):
    _, _, page = built
    for expected in (
        "2026-05-04 12:30 UTC",
        "0123456789ab, with uncommitted changes",
        "<dd>soapy-roup</dd>",
        "run threshold=0.75 (soapy-roup) of experiment offramp; offramp ui opens it",
    ):
        assert expected in page.html


def test_routing_that_does_not_pay_is_warned_of_in_title_and_heading(tmp_path):
    root = fabricate(tmp_path, 2, routing={"ppl": 30.0, "flop_saving": 0.585})
    page = build_report(root, settings()).read_text(encoding="utf-8")
    assert "<title>Warning: Early exit at threshold 0.75 does not pay: worse than every token" in page
    heading = page[page.index("<h1>") : page.index("</h1>")]
    assert 'class="warned">Warning' in heading and "FLOPs" not in heading
    assert "saves 61.0% of the FLOPs; routing has 30.00 and saves 58.5%." in page


def test_text_of_full_depth_has_no_colour(built):
    exits, _, page = built
    style = page.html[: page.html.index("</style>")]
    assert [f".e{exit} {{" in style for exit in range(exits)] == [True] * (exits - 1) + [False]


def test_every_cell_of_a_wide_table_knows_its_column(built):
    """On a narrow screen, where rows are cards, it is all that names a value."""
    _, _, page = built
    wide = page.html.split('<table class="wide">')[1:]
    assert len(wide) == 2
    for table in wide:
        table = table[: table.index("</table>")]
        heads = re.findall(r'<th scope="col">(.*?)</th>', table)[1:]
        for row in re.findall(r"<tr.*?</tr>", table, flags=re.DOTALL):
            if cells := re.findall(r'<td data-head="(.*?)"', row):
                assert cells == heads


def test_lineage_names_inputs_and_parameters(built):
    exits, _, page = built
    for expected in ("routed", "pretrain.method", "exits.label", str([1, 3, 2, 2][:exits]), "null"):
        assert f">{expected}<" in page.html


def test_same_inputs_same_bytes_in_another_process_without_torch(reports, tmp_path):
    root = fabricate(tmp_path, 3)
    script = (
        "import sys; from pathlib import Path; from tests.fixtures.report_run import settings\n"
        "from offramp.report.page import build_report\n"
        "build_report(Path(sys.argv[1]), settings(3)); assert 'torch' not in sys.modules"
    )
    path = [str(Path(__file__).parent), *(entry for entry in sys.path if entry)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path), "PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", script, str(root)], check=True, env=environment)
    first, second = (
        {path.name: path.read_bytes() for path in report.rglob("*") if path.is_file()}
        for report in (reports[3], root / "report")
    )
    assert len(first) == len(FIGURES) + 1
    assert first == second


def test_one_exit_and_no_headroom_still_make_a_page(tmp_path):
    nothing = {"exit_fraction": {"exit_0": 1.0}, "threshold": {}, "headroom": None, "shallow_ratio": 0.0}
    page = build_report(fabricate(tmp_path, 1, routing=nothing), settings(1)).read_text(encoding="utf-8")
    assert "the only exit is full depth" in page
    assert "There is no choice to judge." in page
    assert "<title>This model has no early exit" in page


def test_a_missing_table_is_named_and_the_old_report_survives(tmp_path):
    root = fabricate(tmp_path, 2)
    (root / "report").mkdir()
    (root / "report" / "index.html").write_text("old")
    (root / "metrics" / "plots" / "reliability.csv").unlink()
    with pytest.raises(UserError, match=r"reliability\.csv is missing.*dvc repro"):
        build_report(root, settings())
    assert (root / "report" / "index.html").read_text() == "old"


@pytest.mark.parametrize(
    ("file", "content", "complaint"),
    [
        ("routing.json", "{", "not valid JSON"),
        ("plots/reliability.csv", "", "not a CSV table"),
        ("plots/reliability.csv", "exit,confidence\n0,0.5\n", "no column agreement, tokens"),
    ],
)
def test_damaged_metrics_are_named(tmp_path, file, content, complaint):
    root = fabricate(tmp_path, 2)
    (root / "metrics" / file).write_text(content)
    with pytest.raises(UserError, match=f"{Path(file).name}.*{complaint}"):
        build_report(root, settings())


def test_metrics_of_another_run_are_refused(tmp_path):
    root = fabricate(tmp_path, 2, routing={"inputs": {"data": "0" * 64}})
    with pytest.raises(UserError, match=r"routing\.json was made from another data"):
        build_report(root, settings())
