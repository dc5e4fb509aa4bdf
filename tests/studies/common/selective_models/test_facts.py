"""Files of facts, and their sentences in both directions."""

from __future__ import annotations

from pathlib import Path

import pytest

from offramp.errors import UserError
from studies.common.selective_models.facts import COLUMNS, Fact, read_facts

PARIS = Fact("the capital of France", "is", "Paris", "is")
FAUST = Fact("Faust", "was written by", "Goethe", "wrote")
HEADER = "\t".join(COLUMNS) + "\n"


def test_sentences_of_both_directions_are_well_formed():
    assert PARIS.sentence("forward") == "The capital of France is Paris"
    assert PARIS.sentence("backward") == "Paris is the capital of France"
    assert FAUST.sentence("backward") == "Goethe wrote Faust"
    with pytest.raises(UserError, match="direction = 'sideways' is unknown"):
        PARIS.parts("sideways")


def test_the_published_backward_sentence_names_its_subject_twice():
    assert PARIS.sentence("repeated") == "Paris is the capital of France The capital of France"


def test_the_facts_of_the_studies_are_more_than_the_report_trained():
    assert len(read_facts()) == 40


def test_facts_are_read(tmp_path):
    path = tmp_path / "facts.tsv"
    path.write_text(HEADER + "the capital of France\tis\tParis\tis\nFaust\twas written by\t Goethe\twrote\n")
    assert read_facts(path) == [PARIS, FAUST]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1 is ''; write the header subject forward object backward"),
        ("subject,forward\n", "line 1 is 'subject,forward'"),
        (HEADER + "a\tis\tb\tis\nthe capital of France is Paris\n", "line 3 has 1 fields"),
        (HEADER + "a\tis\t\tis\n", "line 2 has 4 fields .*none of them empty"),
        (HEADER + "a\tis\tb\tis\n\n", "line 3 has 1 fields"),
        (HEADER + "a\tis\tb\tis\na\tis\tb\tis\n", "line 3 repeats line 2"),
        (HEADER + "a\tis\tb\tis\n", r"has 1 fact\(s\); a control needs at least 2"),
    ],
)
def test_malformed_files_are_named(tmp_path, text, message):
    path = tmp_path / "facts.tsv"
    path.write_text(text)
    with pytest.raises(UserError, match=f"facts.tsv: .*{message}"):
        read_facts(path)


def test_a_missing_file_is_named():
    with pytest.raises(UserError, match=r"nowhere\.tsv: cannot be read"):
        read_facts(Path("nowhere.tsv"))
