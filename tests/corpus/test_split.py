"""Documents are split once, whole, and the same way every time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.corpus.split import LEAST, SPLITS, random_split
from offramp.errors import UserError

fractions = st.floats(0.001, 0.998)


@given(st.integers(4, 500), fractions, fractions, st.integers(-(2**40), 2**40))
def test_every_split_gets_its_least_and_about_its_share(documents, calibration, test, seed):
    if calibration + test >= 1:
        calibration, test = calibration / 2, test / 2
    splits = random_split(documents, calibration, test, seed)
    counts = dict(zip(SPLITS, np.bincount(splits, minlength=3)))
    assert len(splits) == documents
    assert all(counts[split] >= least for split, least in LEAST.items())
    assert counts["calibration"] <= max(2, round(documents * calibration))
    assert counts["test"] <= max(1, round(documents * test))
    assert (splits == random_split(documents, calibration, test, seed)).all()


def test_default_shares():
    splits = random_split(237, 0.1, 0.1, seed=0)
    assert np.bincount(splits).tolist() == [189, 24, 24]
    assert (splits != random_split(237, 0.1, 0.1, seed=1)).any()


@pytest.mark.parametrize("documents", [1, 3])
def test_too_few_documents(documents):
    message = rf"{documents} document\(s\), at least 4 .*corpus.document_pattern.*corpus.document_characters"
    with pytest.raises(UserError, match=message):
        random_split(documents, 0.1, 0.1, seed=0)
