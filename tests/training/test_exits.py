"""How calibration text is parted between fitting, selecting and guaranteeing, and what exits learn of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.artifacts.artifact import create_artifact, open_artifact
from offramp.errors import UserError
from offramp.exits.store import Exits
from offramp.states.statistics import SATURATION, Readout, token_statistics
from offramp.states.store import States, StatesWriter
from offramp.training.exits import (
    PARTS,
    _require_numbers,
    signal_quality,
    split_calibration,
    train_exits,
)
from offramp.vocabulary import LEARNED
from tests.conftest import repository_params


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


WIDTH, VOCABULARY, TOKENS, TOKENS_OF_DOCUMENT = 8, 20, 12_000, 300
SCALES = (0.2, 0.6)
"""Of the truth's logits, what the two early exits say."""


def states_of_known_gain(path, sharpness):
    """States of three exits, the last of which says the truth, made sharper or softer.

    Beside them the gains (2, TOKENS) of it over the others, as the truth expects them.
    """
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(TOKENS, WIDTH, generator=generator)
    matrix = torch.randn(VOCABULARY, WIDTH, generator=generator)
    truth = torch.softmax(hidden @ matrix.T, 1)
    target = torch.multinomial(truth, 1, generator=generator).squeeze(1)
    scales = (*SCALES, sharpness)
    statistics = token_statistics([hidden] * 3, [Readout(scale * matrix) for scale in scales], target)
    rows = np.arange(TOKENS)
    places = {
        "document": rows // TOKENS_OF_DOCUMENT,
        "sequence": rows // 10,
        "position": rows % 10,
        "token": rows % VOCABULARY,
        "target": target.numpy(),
    }
    columns = {name: values.astype(np.int32) for name, values in places.items()}
    for exit, values in enumerate(statistics):
        values[SATURATION] = torch.zeros(TOKENS)
        for name, column in values.items():
            columns[f"{name}_{exit}"] = column.numpy().astype(np.int32 if name == "argmax" else np.float32)
    with create_artifact(path / "lm", "lm", {}, {}):
        pass
    with create_artifact(path / "states", "states", {}, {"lm": open_artifact(path / "lm", "lm")}) as out:
        writer = StatesWriter(out.path, 3, "float32", TOKENS)
        writer.add(columns, [hidden] * 3)
        writer.close()
        out.meta.update(
            exits=3,
            tokens=writer.tokens,
            shards=writer.shards,
            window=10,
            width=WIDTH,
            vocab_size=VOCABULARY,
            dtype="float32",
            precision="fp32",
        )
    losses = [-(truth * torch.log_softmax(scale * hidden @ matrix.T, 1)).sum(1).numpy() for scale in scales]
    return States(open_artifact(path / "states", "states")), losses


@pytest.mark.parametrize(("label", "sharpness"), [("divergence", 2.0), ("divergence", 0.8), ("gain", 2.0)])
def test_slopes_turn_predicted_benefits_into_the_gains_of_a_full_depth_that_is_not_calibrated(
    tmp_path, label, sharpness
):
    states, losses = states_of_known_gain(tmp_path, sharpness)
    settings = repository_params(
        exits__label=label, exits__hidden=[32], exits__max_epochs=60, exits__batch_size=500
    ).exits
    artifact, fitted, _ = train_exits(states, settings, tmp_path / "exits", {})
    exits, select = Exits(artifact), split_calibration(states.column("document"), settings.seed) == 1
    for exit, measured in enumerate(fitted.exits):
        slopes = measured.gain_slopes
        assert list(slopes) == [f"exit_{deeper}" for deeper in range(exit + 1, 3)]
        assert exits.gain_slopes(exit) == [slope.slope for slope in slopes.values()]
        with torch.no_grad():
            predicted = exits.classifier(exit).costs(states.hidden(exit)).double().numpy()[select]
        for place, (slope, deeper) in enumerate(zip(slopes.values(), range(exit + 1, 3))):
            gain, benefit = (losses[exit] - losses[deeper])[select], predicted[:, place]
            seen = (states.column(f"loss_{exit}") - states.column(f"loss_{deeper}"))[select]
            assert slope.slope == pytest.approx((seen * benefit).sum() / (benefit**2).sum(), rel=1e-4)
            known = (gain * benefit).sum() / (benefit**2).sum()
            low, high = slope.interval
            assert low < slope.slope < high
            assert slope.slope == pytest.approx(known, abs=(high - low))
            assert (slope.tokens, slope.documents) == (select.sum(), 10)
        of_full_depth = slopes["exit_2"]
        if label == "gain":
            assert of_full_depth.slope == pytest.approx(1, abs=0.15)
        else:
            assert of_full_depth.interval[1] < 0.8 if sharpness > 1 else of_full_depth.interval[0] > 1.1


def test_what_is_no_benefit_has_no_slopes(tmp_path):
    states, _ = states_of_known_gain(tmp_path, 1.0)
    settings = repository_params(exits__label="correct", exits__max_epochs=2).exits
    artifact, fitted, _ = train_exits(states, settings, tmp_path / "exits", {})
    assert all("gain_slopes" not in measured.to_json() for measured in fitted.exits)
    assert "gain_slopes" not in artifact.meta
    with pytest.raises(UserError, match=r"train_exits` with exits\.label gain or divergence"):
        Exits(artifact).gain_slopes(0)


@pytest.mark.parametrize(
    ("easy_loss", "message"),
    [
        (1e-9, r"is no for all 6000 tokens of part fit.*give a higher exits\.easy_loss \(now 1e-09 nats\)"),
        (100.0, r"is yes for all 6000 tokens of part fit.*give a lower exits\.easy_loss \(now 100\.0 nats\)"),
    ],
)
def test_a_label_that_is_the_same_for_all_tokens_is_named_where_it_arises(tmp_path, easy_loss, message):
    states, _ = states_of_known_gain(tmp_path, 1.0)
    settings = repository_params(exits__label="easy", exits__easy_loss=easy_loss).exits
    with pytest.raises(UserError, match=f"train_exits: label easy of exit 0 {message}"):
        train_exits(states, settings, tmp_path / "exits", {})
    assert not (tmp_path / "exits").exists()


def test_a_signal_that_is_no_number_is_named_with_its_exit():
    _require_numbers("entropy", np.zeros(4), exit=0)
    with pytest.raises(UserError, match=r"signal learned of exit 1 is not a finite .* at 2 of 4 .*exits\."):
        _require_numbers(LEARNED, np.array([0, np.nan, np.inf, 1]), exit=1)
    with pytest.raises(UserError, match=r"signal entropy of exit 0 .*pretrain\.learning_rate"):
        _require_numbers("entropy", np.full(4, np.nan), exit=0)


def test_losses_that_are_all_alike_rank_nothing():
    with pytest.raises(UserError, match="none is easier than another"):
        signal_quality(np.linspace(0, 0.9, 10), np.ones(10, bool), np.full(10, 2.5))
