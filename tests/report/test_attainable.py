"""The picture of what is attainable by depth: bars on a terminal, and a page that is complete in itself."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from offramp.report.attainable import ASCII, BLOCKS, WIDTH, Bars, best_exit, by_depth
from offramp.report.suitability import page, table, write
from offramp.results.suitability import CheckpointSuitability, MeasuredText
from tests.fixtures.report_run import made_up_suitability

TEXT = MeasuredText(source="letters.txt", documents=1, groups=30, fit_documents=1, fit_tokens=20_096)


@pytest.fixture
def measured():
    """A checkpoint of four exits; with one alone four fifths are attainable of what is with all of them."""
    result = made_up_suitability(4)
    values = {name: getattr(result, name) for name in result.model_fields_set}
    return CheckpointSuitability(**values | {"model": "a <model>", "grouped_by": "stretches"}, text=TEXT)


def printed(renderable, encoding="utf-8"):
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Console(width=160, file=out).print(renderable)
    out.flush()
    return out.buffer.getvalue().decode(encoding)


def bar_lengths(line, blocks):
    return [line.count(block) for block in blocks]


@pytest.mark.parametrize("encoding, blocks", [("utf-8", BLOCKS), ("ascii", ASCII)])
def test_a_bar_runs_to_the_low_end_the_value_and_the_high_end(measured, encoding, blocks):
    legend, *lines = printed(Bars(measured), encoding).splitlines()
    assert len(lines) == 3 * (3 + 1), "three rises of three early exits, and of all together"
    assert all(block in legend for block in blocks)
    last = lines[-1]  # all together at 5 %: .38 in .36 to .40, which is the largest of all
    assert "38.0% [36.0%, 40.0%]" in last and "random 7.6%" in last
    low, value, high = (round(WIDTH * end / 0.40) for end in (0.36, 0.38, 0.40))
    bar = re.search("[" + re.escape(blocks) + "]+", last).group()
    assert bar_lengths(bar, blocks) == [low, value - low, high - value] and len(bar) == WIDTH
    first = re.search("[" + re.escape(blocks) + "]+", lines[0]).group()
    assert lines[0].startswith("after layer 1 of 4") and len(first) == round(
        WIDTH * (0.8 * 0.16 + 0.02) / 0.40
    )


def test_what_was_not_measured_exit_by_exit_has_no_picture(measured):
    rows = {
        name: row.model_copy(
            update={
                "readouts": {
                    kind: read.model_copy(update={"attainable": None}) for kind, read in row.readouts.items()
                }
            }
        )
        for name, row in measured.exits.items()
    }
    silent = measured.model_copy(update={"exits": rows})
    assert not by_depth(silent) and not printed(Bars(silent)).strip()


def test_the_best_single_exit_is_the_one_that_saves_most(measured):
    assert [depth.layers for depth in by_depth(measured)] == [1, 2, 3]
    second = measured.exits["exit_1"].readouts["tuned"]
    more = second.attainable.rise_3.model_copy(update={"flop_saving": 0.29})
    better = second.model_copy(update={"attainable": second.attainable.model_copy(update={"rise_3": more})})
    row = measured.exits["exit_1"].model_copy(
        update={"readouts": measured.exits["exit_1"].readouts | {"tuned": better}}
    )
    changed = measured.model_copy(update={"exits": measured.exits | {"exit_1": row}})
    assert best_exit(changed, "rise_3") == (2, more)
    assert best_exit(changed, "rise_1")[0] == 1, "the first of equal ones"


class References(HTMLParser):
    """Collects the tags of a page and all that it refers to."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.references, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.references += [value for name, value in attributes if name in ("src", "href", "xlink:href")]

    def handle_data(self, data):
        self.words.append(data.strip())


def test_the_page_is_complete_in_itself_and_says_what_was_measured(measured, tmp_path):
    write(measured, tmp_path)
    text = (tmp_path / "suitability.html").read_text(encoding="utf-8")
    assert text == page(measured), "the same bytes each time"
    parsed = References(text)
    assert parsed.tags.count("svg") == 1 and not {"script", "link", "img", "iframe"} & set(parsed.tags)
    assert all(reference.startswith("#") for reference in parsed.references)
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org)", text)
    shown = " ".join(parsed.words)
    for expected in (
        "Should a <model> exit early at all?",
        "Worth a try",
        measured.advice.sentence,
        "letters.txt. Fitted on 20,096 tokens of 1 document, measured on 1 document; intervals resample 30 "
        "stretches of these",
        "at 1% more perplexity after layer 1 12.8% [10.8%, 14.8%], all together 16.0% [14.0%, 18.0%]",
        "1% more perplexity",
        "the exit stands after layer (of 4)",
        "95% intervals over stretches",
    ):
        assert expected in shown, expected
    assert CheckpointSuitability.read(tmp_path) == measured


def test_the_table_has_a_row_per_exit_and_says_where_the_text_is_from(measured):
    assert table(measured).row_count == 4
    assert "letters.txt" in printed(table(measured)) and "over stretches" in printed(table(measured))


def test_a_clock_that_cannot_be_trusted_is_doubted(measured):
    def said(*seconds):
        timing = measured.timing.model_copy(update={"seconds": list(seconds)})
        return " ".join(printed(table(measured.model_copy(update={"timing": timing}))).split())

    assert "plain passes took 0.31 to 0.84 s: too far apart" in said(0.31, 0.84)
    assert "plain passes took 0.31 to 0.35 s." in said(0.31, 0.35)


def test_a_perplexity_out_of_all_proportion_is_a_power(measured):
    raw = measured.exits["exit_0"].readouts["raw"].model_copy(update={"nll": 812.34, "nll_interval": None})
    row = measured.exits["exit_0"]
    far_off = row.model_copy(update={"readouts": row.readouts | {"raw": raw}})
    assert "e^812.3" in page(measured.model_copy(update={"exits": measured.exits | {"exit_0": far_off}}))
