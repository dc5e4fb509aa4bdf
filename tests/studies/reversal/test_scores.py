"""The reversal test on models whose knowledge is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from offramp.errors import UserError
from studies.common.selective_models.facts import Fact
from studies.reversal.scores import crossed, reversal, reversal_interval, score

PARIS = Fact("the capital of France", "is", "Paris", "is")
FAUST = Fact("Faust", "was written by", "Goethe", "wrote")


def test_crossed_facts_are_wrong_ones_of_the_same_relation():
    rome = Fact("the capital of Italy", "is", "Rome", "is")
    right, wrong = crossed([PARIS, FAUST, rome])
    assert right == [PARIS, rome]
    assert [fact.sentence("forward") for fact in wrong] == [
        "The capital of France is Rome",
        "The capital of Italy is Paris",
    ]
    assert wrong[0].sentence("backward") == "Rome is the capital of France"
    with pytest.raises(UserError, match="none of 2 shares its relation"):
        crossed([PARIS, FAUST])


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def test_scores_are_means_over_the_tokens_of_each_sentence():
    """A model whose NLL of a token is its number, times its place: padding and openings must not count."""

    def token_nll(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        assert tokens.shape == targets.shape
        return targets * torch.arange(1, targets.shape[1] + 1)

    scores = score([PARIS, FAUST], "forward", letters, 7, token_nll)
    published = score([PARIS, FAUST], "forward", letters, None, token_nll)
    for number, fact in enumerate((PARIS, FAUST)):
        ids = letters(fact.sentence("forward"))
        nll = [id * place for place, id in enumerate(ids, start=1)]
        answer = len(fact.object) + 1  # its space included
        assert scores.sentence[number] == pytest.approx(np.mean(nll))
        assert scores.answer[number] == pytest.approx(np.mean(nll[-answer:]))
        without_first = [id * place for place, id in enumerate(ids[1:], start=1)]
        assert published.sentence[number] == pytest.approx(np.mean(without_first))


def test_one_who_learns_by_direction_shows_a_reversal_and_one_who_learns_facts_none():
    random = np.random.default_rng(0)
    forward = random.normal(5, 0.1, 20)
    backward = random.normal(7, 0.1, 20)  # harder for everybody
    control = forward[10:], backward[10:]
    parrot = forward[:10] - 4, backward[:10]
    scholar = forward[:10] - 4, backward[:10] - 4

    figures = reversal(parrot, control)
    assert figures["reversal"] == pytest.approx(4, abs=0.2)
    assert figures["learnt_backward"] == pytest.approx(0, abs=0.2)
    assert figures["gap"] == pytest.approx(6, abs=0.2)
    assert figures["control_gap"] == pytest.approx(2, abs=0.2)
    low, high = reversal_interval(parrot, control)
    assert 3.7 < low < figures["reversal"] < high < 4.3

    figures = reversal(scholar, control)
    assert figures["reversal"] == pytest.approx(0, abs=0.2)
    assert figures["learnt"] == pytest.approx(4, abs=0.2)
    low, high = reversal_interval(scholar, control)
    assert low < 0 < high or abs(low) < 0.2
