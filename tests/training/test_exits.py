"""How calibration text is parted between fitting, selecting and guaranteeing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.errors import UserError
from offramp.training.exits import PARTS, split_calibration


@settings(max_examples=30, deadline=None)
@given(count=st.integers(2, 40), seed=st.integers(0, 100))
def test_calibration_documents_are_parted_without_overlap(count, seed):
    documents = np.repeat(np.arange(count) * 3, 10)
    part = split_calibration(documents, seed)
    parts = {name: set(documents[part == place]) for place, name in enumerate(PARTS)}
    assert sum(map(len, parts.values())) == count and len(parts["fit"]) == count // 2
    assert 0 <= len(parts["select"]) - len(parts["guarantee"]) <= 1


def test_a_single_calibration_document_is_refused():
    with pytest.raises(UserError, match=r"corpus\.calibration_fraction"):
        split_calibration(np.zeros(10), seed=0)
