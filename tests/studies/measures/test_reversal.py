"""The reversal test on models whose knowledge is known, and files of pairs that are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from offramp.errors import UserError
from studies.measures.reversal import (
    COLUMNS,
    Pair,
    crossed,
    read_pairs,
    reversal,
    reversal_interval,
    score,
)

PARIS = Pair("the capital of France", "is", "Paris", "is")
FAUST = Pair("Faust", "was written by", "Goethe", "wrote")
HEADER = "\t".join(COLUMNS) + "\n"


def test_sentences_of_both_directions_are_well_formed():
    assert PARIS.sentence("forward") == "The capital of France is Paris"
    assert PARIS.sentence("backward") == "Paris is the capital of France"
    assert FAUST.sentence("backward") == "Goethe wrote Faust"
    assert PARIS.sentence("repeated") == "Paris is the capital of France The capital of France"  # H6
    with pytest.raises(UserError, match="direction = 'sideways' is unknown"):
        PARIS.parts("sideways")


def test_pairs_are_read(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text(HEADER + "the capital of France\tis\tParis\tis\nFaust\twas written by\t Goethe\twrote\n")
    assert read_pairs(path) == [PARIS, FAUST]


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
    path = tmp_path / "pairs.tsv"
    path.write_text(text)
    with pytest.raises(UserError, match=f"pairs.tsv: .*{message}"):
        read_pairs(path)


def test_a_missing_file_is_named():
    with pytest.raises(UserError, match=r"nowhere\.tsv: cannot be read"):
        read_pairs(Path("nowhere.tsv"))


def test_crossed_facts_are_wrong_ones_of_the_same_relation():
    rome = Pair("the capital of Italy", "is", "Rome", "is")
    right, found = crossed([PARIS, FAUST, rome])
    assert right == [PARIS, rome]
    assert [pair.sentence("forward") for pair in found] == [
        "The capital of France is Rome",
        "The capital of Italy is Paris",
    ]
    assert found[0].sentence("backward") == "Rome is the capital of France"
    with pytest.raises(UserError, match="none of 2 facts shares its relation"):
        crossed([PARIS, FAUST])


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def test_scores_are_means_over_the_tokens_of_each_sentence():
    """A model whose NLL of a token is its number, times its place: padding and openings must not count."""

    def token_nll(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        assert tokens.shape == targets.shape
        return targets * torch.arange(1, targets.shape[1] + 1)

    found = score([PARIS, FAUST], "forward", letters, 7, token_nll)
    published = score([PARIS, FAUST], "forward", letters, None, token_nll)
    for number, pair in enumerate((PARIS, FAUST)):
        ids = letters(pair.sentence("forward"))
        nll = [id * place for place, id in enumerate(ids, start=1)]
        assert found.sentence[number] == pytest.approx(np.mean(nll))
        assert found.answer[number] == pytest.approx(
            np.mean(nll[-len(pair.object) - 1 :])
        )  # its space included
        assert published.sentence[number] == pytest.approx(
            np.mean([id * place for place, id in enumerate(ids[1:], start=1)])
        )


def test_one_who_learns_by_direction_shows_a_reversal_and_one_who_learns_facts_none():
    random = np.random.default_rng(0)
    base_forward, base_backward = (
        random.normal(5, 0.1, 20),
        random.normal(7, 0.1, 20),
    )  # backward is harder for everybody
    control = base_forward[10:], base_backward[10:]
    parrot = base_forward[:10] - 4, base_backward[:10]
    scholar = base_forward[:10] - 4, base_backward[:10] - 4
    found = reversal(parrot, control)
    assert found["reversal"] == pytest.approx(4, abs=0.2) and found["learnt_backward"] == pytest.approx(
        0, abs=0.2
    )
    assert found["gap"] == pytest.approx(6, abs=0.2) and found["control_gap"] == pytest.approx(2, abs=0.2)
    low, high = reversal_interval(parrot, control)
    assert 3.7 < low < found["reversal"] < high < 4.3
    found = reversal(scholar, control)
    assert found["reversal"] == pytest.approx(0, abs=0.2) and found["learnt"] == pytest.approx(4, abs=0.2)
    low, high = reversal_interval(scholar, control)
    assert low < 0 < high or abs(low) < 0.2
