"""Rows that a classifier is fitted to: from disk they are those in memory, in any order, in little memory."""

from __future__ import annotations

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.artifacts.artifact import create_artifact, open_artifact
from offramp.exits.classifier import classifier_inputs
from offramp.states.statistics import STATISTICS
from offramp.states.store import States, StatesWriter
from offramp.training import inputs
from offramp.training.exit_classifiers import fit_classifier
from offramp.training.inputs import RUN, HeldInputs, StoredInputs, state_inputs


def stored(folder, tokens, width, shard_tokens, seed=0):
    """States of one exit: of random numbers, in shards of ``shard_tokens``."""
    draw = np.random.default_rng(seed)
    columns = {"token": np.arange(tokens, dtype=np.int32)}
    columns |= {f"{name}_0": draw.random(tokens, np.float32) for name in STATISTICS}
    hidden = torch.from_numpy(draw.standard_normal((tokens, width), np.float32)) * 3 + 1
    with create_artifact(folder, "states", {}, {}) as out:
        writer = StatesWriter(out.path, 1, "float16", shard_tokens)
        for rows in np.split(np.arange(tokens), range(shard_tokens, tokens, shard_tokens)):
            writer.add({name: values[rows] for name, values in columns.items()}, [hidden[rows]])
        writer.close()
        out.meta.update(exits=1, tokens=tokens, shards=writer.shards, window=1, width=width, dtype="float16")
    return States(open_artifact(folder, "states"))


def runs_of_text(draw, tokens):
    """A mask (tokens,) whose tokens stand together in stretches, as those of documents do."""
    lengths = draw.integers(1, 3 * RUN, size=tokens)
    return np.repeat(draw.random(tokens) < 0.5, lengths)[:tokens]


@settings(max_examples=20, deadline=None)
@given(
    tokens=st.integers(2 * RUN, 20 * RUN),
    shard_tokens=st.integers(RUN // 3, 5 * RUN),
    which=st.sampled_from(["state", "statistics", "both"]),
    held_runs=st.integers(1, 8),
    seed=st.integers(0, 100),
)
def test_rows_read_from_disk_are_those_held_in_memory(
    tmp_path_factory, tokens, shard_tokens, which, held_runs, seed
):
    """... part by part in the order of the text; shuffled, each comes once an epoch, beside its place."""
    states = stored(tmp_path_factory.mktemp("states") / "states", tokens, 4, shard_tokens, seed)
    chosen = runs_of_text(np.random.default_rng(seed), tokens)
    chosen[:RUN] = True
    statistics = torch.from_numpy(states.statistics(0))
    wanted = classifier_inputs(which, states.hidden(0), statistics)[torch.from_numpy(chosen)]
    rows = StoredInputs(states, 0, which, chosen, held=held_runs * RUN * 4 * wanted.shape[1])
    assert (len(rows), rows.width) == wanted.shape
    assert torch.equal(torch.cat(list(rows.parts())), wanted)
    for mean, known in zip(rows.moments(), HeldInputs(wanted).moments()):
        torch.testing.assert_close(mean, known)

    generator = torch.Generator().manual_seed(seed)
    orders = []
    for _ in range(2):
        batches = list(rows.shuffled(50, generator))
        assert all(len(places) <= 50 and torch.equal(wanted[places], batch) for places, batch in batches)
        orders.append(torch.cat([places for places, _ in batches]))
        assert torch.equal(orders[-1].sort().values, torch.arange(len(wanted)))
    assert not torch.equal(*orders)


def test_rows_that_do_not_fit_are_shuffled_over_all_of_the_text(tmp_path):
    """The first rows of an epoch come from everywhere, not from the text's beginning."""
    tokens = 100 * RUN
    states = stored(tmp_path / "states", tokens, 2, 7 * RUN)
    rows = StoredInputs(states, 0, "state", np.ones(tokens, bool), held=10 * RUN * 8)
    first, _ = next(rows.shuffled(10 * RUN, torch.Generator().manual_seed(0)))
    assert len(first) == 10 * RUN
    assert np.histogram(first, bins=4, range=(0, tokens))[0].min() > 0
    assert (first.diff() == 1).float().mean() < 0.05  # and tokens of a run do not follow each other


def test_few_rows_are_held_and_many_are_read(tmp_path):
    tokens = 8 * RUN
    states = stored(tmp_path / "states", tokens, 2, 3 * RUN)
    half = np.arange(tokens) < tokens // 2
    held = tokens // 2 * 8
    few, many = (state_inputs(states, 0, "state", chosen, held) for chosen in (half, half | True))
    assert isinstance(few, HeldInputs) and isinstance(many, StoredInputs)
    assert torch.equal(few.rows, states.hidden(0, half))


def test_a_classifier_fitted_from_disk_is_as_good_as_one_fitted_in_memory(tmp_path):
    tokens, width = 60 * RUN, 4
    states = stored(tmp_path / "states", tokens, width, 9 * RUN)
    hidden = states.hidden(0)
    wanted = hidden[:, :1] + 0.1 * torch.randn(tokens, 1, generator=torch.Generator().manual_seed(0))
    select = np.arange(tokens) % (4 * RUN) < RUN
    labels = [wanted[torch.from_numpy(part)] for part in (~select, select)]
    losses = []
    for held in (8 * RUN * 4 * width, inputs.HELD):
        rows = [state_inputs(states, 0, "state", part, held) for part in (~select, select)]
        fit = fit_classifier(
            (rows[0], labels[0]),
            (rows[1], labels[1]),
            "loss_regression",
            [],
            learning_rate=1e-2,
            batch_size=500,
            max_epochs=30,
            patience=3,
            seed=0,
        )
        losses.append(min(row["select_loss"] for row in fit.curve))
    assert losses[0] == pytest.approx(losses[1], rel=0.02)
    assert losses[1] < 0.01  # of 1, the standardised label's variance


def test_memory_holds_what_it_is_told_to_and_not_the_text(tmp_path):
    """All rows would take 150 MB; 8 are held, and twice that is on its way."""
    tokens = 300_000
    states = stored(tmp_path / "states", tokens, 128, 4096)
    rows = StoredInputs(states, 0, "state", np.ones(tokens, bool), held=2**23)
    process = psutil.Process()
    before = process.memory_info().rss
    shuffled = (process.memory_info().rss for _ in rows.shuffled(4096, torch.Generator()))
    in_order = (process.memory_info().rss for _ in rows.parts())
    assert max(*shuffled, *in_order) - before < 60e6
