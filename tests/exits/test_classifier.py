"""Exit classifiers as networks; how they learn is tested in tests/training."""

from __future__ import annotations

import pytest
import torch

from offramp.exits.classifier import ExitClassifier, classifier_inputs


def test_classifier_flops_are_those_of_its_matrices():
    assert ExitClassifier(10, [6, 4]).flops == 2 * (10 * 6 + 6 * 4 + 4 * 1)


@pytest.mark.parametrize(("which", "inputs"), [("state", 3), ("statistics", 2), ("both", 5)])
def test_a_classifier_sees_what_it_is_given_and_nothing_missing(which, inputs):
    hidden, statistics = torch.ones(4, 3), torch.zeros(4, 2)
    assert classifier_inputs(which, hidden, statistics).shape == (4, inputs)
    with pytest.raises(ValueError, match=f"inputs {which} needs what it sees"):
        classifier_inputs(which, None, None)
