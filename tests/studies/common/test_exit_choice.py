"""Every oracle is at one of its own scale, chance at zero; a classifier looks at what its view says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from studies.common.exit_choice import VIEWS, Views, _previous, fit_view, nll_at_share, standings
from studies.common.product_path import SmallModel
from studies.common.switch_models import recipe, switch_data, switch_model
from tests.fixtures.tiny_studies import tiny_job
from tests.fixtures.word_chains import chain_text


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), share=st.sampled_from([0.2, 0.5, 0.8]))
def test_an_oracle_is_at_one_of_its_own_scale_and_chance_at_zero_of_both(seed, share):
    generator = np.random.default_rng(seed)
    divergence = np.stack((generator.exponential(size=400), np.zeros(400)))
    loss = (
        generator.exponential(size=(2, 400)) + divergence
    )  # the gain of going on is the divergence, and noise
    gain, attained = f"headroom.{share}", f"attained.{share}"

    def standing(score: np.ndarray) -> dict[str, float]:
        return standings(score, loss, divergence, [share])

    assert standing(loss[1] - loss[0])[gain] == pytest.approx(1)
    assert standing(-divergence[0])[attained] == pytest.approx(1)
    assert standing(-divergence[0])[gain] < 1 < standing(loss[1] - loss[0])[attained]
    chance = [standing(generator.random(400)) for _ in range(60)]
    assert abs(np.mean([values[gain] for values in chance])) < 0.1
    assert nll_at_share(generator.random(400), loss, 0.0) == pytest.approx(loss[1].mean())


def test_the_previous_token_is_none_at_the_start_of_a_sequence():
    states = type("States", (), {"column": lambda self, name: np.array([0, 1, 2, 0, 1])})()
    assert _previous(torch.arange(1.0, 6.0).unsqueeze(1), states).flatten().tolist() == [0, 1, 2, 0, 4]


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    return tiny_job("exit_signals", chain_text(), "corrected", tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def model(job) -> SmallModel:
    sizes = job.shared["switch_models"]
    return switch_model(recipe("base", 0, job.cache, sizes), switch_data(job.text, job.cache, sizes))


def test_views_are_of_every_token_and_wider_the_more_they_hold(job, model):
    views = Views(model, 0)
    first, _ = fit_view(model, views, "state", "gain", [8], job.shared["exit_classifier"])
    inputs = {view: views.get(model.test, view, first) for view in VIEWS}
    assert {len(table) for table in inputs.values()} == {model.test.num_tokens}
    width, statistics = inputs["state"].shape[1], inputs["statistics"].shape[1]
    assert inputs["both"].shape[1] == width + statistics
    assert inputs["state + layer before"].shape[1] == inputs["state + previous state"].shape[1] == 2 * width
    assert inputs["state + previous exit"].shape[1] == width + 3
    embedded = model.load().embedding(torch.from_numpy(model.test.column("token").astype(np.int64)))
    torch.testing.assert_close(inputs["state + layer before"][:, width:], embedded.detach())


def test_a_view_of_a_first_look_needs_one(model):
    with pytest.raises(ValueError, match="first_stage"):
        Views(model, 0).get(model.test, "state + previous exit")
