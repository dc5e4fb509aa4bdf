"""The page of the studies: plots and claims, complete in itself."""

from __future__ import annotations

from html.parser import HTMLParser

from offramp.report.figures import Figure, draw
from studies.findings.page import Claim, Part, Study, studies_page

SVG = draw(lambda axes: axes.plot([1, 2], [3, 4], label="a"), 3.0)
CLAIM = Claim(
    "001-x", "Depth <helps> & pays", "0.5", "0.49", "0.1 [0.05, 0.15]", "fails", "On real text it is 0.1."
)
STUDY = Study(
    "layers",
    "What does a layer do?",
    ["It <works>."],
    [Figure("layers-sotu", "Loss", "By layer.", SVG)],
    [CLAIM],
)
PARTS = [
    Part("A question of its own", "", [Study("free", "Who decides?", [], [], [])]),
    Part("Seed 001", "one fails", [STUDY]),
]


class Reader(HTMLParser):
    """Tags, ids and addresses of a page."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.ids, self.links = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href")]


def test_a_page_is_complete_in_itself_and_the_same_each_time():
    page = studies_page(PARTS)
    found = Reader(page)
    assert page == studies_page(PARTS)
    assert found.tags.count("svg") == 1 and found.tags.count("tr") == 2
    assert len(found.ids) == len(set(found.ids)) and {"layers", "free", "layers-sotu"} <= set(found.ids)
    assert all(link.startswith("#") and link[1:] in found.ids for link in found.links)


def test_text_is_text_and_a_study_without_claims_has_no_table():
    page = studies_page(PARTS)
    assert "Depth &lt;helps&gt; &amp; pays" in page and "It &lt;works&gt;." in page
    assert page.count("<table>") == 1 and "1 claim<" in page
    assert studies_page(PARTS[:1]).count("<table>") == 0


def test_colours_follow_the_readers_scheme():
    page = studies_page(PARTS)
    assert "--paper:" in page and "prefers-color-scheme: dark" in page
    drawing = page[page.index("<svg") : page.index("</svg>")]
    assert "var(--muted)" in drawing and "#646b76" not in drawing
