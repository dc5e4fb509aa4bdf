"""Windows in reading order."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.errors import UserError
from offramp.systems.segment_memory.streams import cut_streams


@given(length=st.integers(20, 200), window=st.integers(1, 6), rows=st.integers(1, 3))
@settings(deadline=None)
def test_every_row_reads_its_own_part_from_left_to_right(length, window, rows):
    streams = cut_streams(torch.arange(length), torch.zeros(length, dtype=torch.long), window, rows)
    steps = (length - 1) // window // rows
    assert streams.tokens.shape == (steps, rows, window)
    for row in range(rows):
        start = row * steps * window
        assert streams.tokens[:, row].flatten().tolist() == list(range(start, start + steps * window))
    assert torch.equal(streams.targets, streams.tokens + 1)
    assert streams.begins[0].all() and not streams.begins[1:].any()


def test_a_new_document_begins_at_the_first_window_that_starts_in_it():
    documents = torch.tensor([0] * 5 + [1] * 16)
    streams = cut_streams(torch.arange(21), documents, 2, 2)
    assert streams.tokens[:, 0, 0].tolist() == [0, 2, 4, 6, 8]
    assert streams.begins[:, 0].tolist() == [
        True,
        False,
        False,
        True,
        False,
    ]  # 4 is of document 0, 6 of document 1
    assert streams.begins[:, 1].tolist() == [True, False, False, False, False]


def test_shuffled_windows_are_the_same_windows_and_cannot_be_carried_over():
    streams = cut_streams(torch.arange(41), torch.zeros(41, dtype=torch.long), 4, 2)
    streams.require_order()
    shuffled = streams.shuffled(torch.Generator().manual_seed(0))
    assert sorted(shuffled.tokens[..., 0].flatten().tolist()) == list(range(0, 40, 4))
    assert torch.equal(shuffled.targets, shuffled.tokens + 1)
    with pytest.raises(UserError, match="memory = 'carry' needs the windows of a document in order"):
        shuffled.require_order()


def test_a_text_that_fills_no_step_is_named():
    with pytest.raises(UserError, match="8 tokens do not fill 2 rows of 4"):
        cut_streams(torch.arange(8), torch.zeros(8, dtype=torch.long), 4, 2)
