"""States on disk: shards and tables, what does not fit, and what signals see of a token."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.artifacts.artifact import create_artifact, open_artifact
from offramp.errors import UserError
from offramp.states.statistics import SATURATION, STATISTICS
from offramp.states.store import States, StatesWriter, join_tables, shard_starts


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.integers(0, 5), st.integers(1, 30), st.integers(1, 40))
def test_shards_are_planned_as_one_writer_writes_them(tmp_path_factory, whole, rest, rows, shard_tokens):
    """... and writers that begin at planned shards leave the same files."""
    sizes = [rows] * whole + [min(rest, rows)] * (rest > 0)
    starts = shard_starts(sizes, shard_tokens)
    batches = np.split(np.arange(sum(sizes), dtype=np.int32), np.cumsum(sizes)[:-1])

    def write(writer, batches):
        for batch in batches:
            writer.add({"token": batch}, [torch.from_numpy(batch)[:, None].float()])
        writer.close()
        return writer.shards

    one, many = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("many")
    assert write(StatesWriter(one, 1, "float32", shard_tokens), batches) == len(starts)
    for shard, (first, last) in enumerate(zip(starts, [*starts[1:], len(batches)])):
        write(StatesWriter(many, 1, "float32", shard_tokens, first_shard=shard), batches[first:last])
    join_tables(many)
    assert {file.name: file.read_bytes() for file in one.iterdir()} == {
        file.name: file.read_bytes() for file in many.iterdir()
    }


@pytest.mark.parametrize("value", [70_000.0, -70_000.0, torch.nan])
def test_states_that_float16_cannot_hold_are_refused_with_the_remedy(tmp_path, value):
    hidden = torch.zeros(2, 3)
    hidden[1, 2] = value
    writer = StatesWriter(tmp_path, 1, "float16", 10)
    with pytest.raises(UserError, match=r"after block 0 do not fit torch\.float16 .*collect\.dtype: float32"):
        writer.add({"token": np.arange(2)}, [hidden])


def write_states(folder, argmax) -> States:
    """An artifact of three tokens whose exits predict ``argmax`` (exits, 3); hidden states are the exit's
    number.
    """
    exits = len(argmax)
    columns = {"token": np.arange(3, dtype=np.int32)}
    for exit in range(exits):
        columns |= {f"{name}_{exit}": np.full(3, exit, np.float32) for name in (*STATISTICS, SATURATION)}
        columns[f"argmax_{exit}"] = np.array(argmax[exit], np.int32)
    with create_artifact(folder, "states", {}, {}) as out:
        writer = StatesWriter(out.path, exits, "float32", 2)
        for rows in (slice(0, 2), slice(2, 3)):
            hidden = [torch.full((3, 4), float(exit))[rows] for exit in range(exits)]
            writer.add({name: values[rows] for name, values in columns.items()}, hidden)
        writer.close()
        out.meta.update(exits=exits, tokens=3, shards=writer.shards, window=3)
    return States(open_artifact(folder, "states"))


def test_patience_counts_the_exits_in_a_row_that_already_said_so(tmp_path):
    """Of token 0 all three exits before the last agree with it, of token 1 the last two, of token 2 none
    in a row.
    """
    states = write_states(tmp_path / "states", [[5, 9, 7], [5, 6, 7], [5, 6, 8], [5, 6, 7]])
    assert states.label_free(3)["patience"].tolist() == pytest.approx([1, 2 / 3, 0])
    assert states.label_free(0)["patience"].tolist() == [0, 0, 0]


def test_hidden_states_come_back_whole_or_for_the_tokens_of_a_mask(tmp_path):
    states = write_states(tmp_path / "states", [[0, 0, 0], [0, 0, 0]])
    assert [len(shard) for shard in states.hidden_shards(1)] == [2, 1]
    assert torch.equal(states.hidden(1), torch.ones(3, 4))
    assert states.hidden(0, np.array([True, False, True])).shape == (2, 4)
    assert states.statistics(1).shape == (3, len(STATISTICS))


def test_what_the_artifact_does_not_hold_is_named(tmp_path):
    states = write_states(tmp_path / "states", [[0, 0, 0]])
    with pytest.raises(UserError, match="has no column 'loss_7'; it has token"):
        states.column("loss_7")
    with pytest.raises(UserError, match="does not say in which precision the model ran"):
        _ = states.precision
    with pytest.raises(UserError, match="holds states of a checkpoint, whose readouts are not kept"):
        states.readouts()
