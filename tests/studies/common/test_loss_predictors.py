"""Predictors find what is linear in a state, in its units; random shares part all tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LinearRegression

from offramp.errors import UserError
from studies.common.loss_predictors import (
    converged_predictor,
    log_odds,
    random_shares,
    relu_network,
    train_network,
)
from studies.common.token_scores import Tokens, read_tokens
from tests.fixtures.states_by_rule import states_by_rule

SETTINGS = {"learning_rate": 0.008, "batch_size": 512, "max_epochs": 120, "patience": 2}


@pytest.fixture(scope="module")
def fitting(tmp_path_factory) -> Tokens:
    return read_tokens(states_by_rule(tmp_path_factory.mktemp("states") / "states", 10, 2))


@pytest.fixture(scope="module")
def test(tmp_path_factory) -> Tokens:
    return read_tokens(states_by_rule(tmp_path_factory.mktemp("states") / "states", 11, 2))


def test_a_converged_predictor_of_a_value_is_as_good_as_least_squares(fitting, test):
    predicted = converged_predictor(fitting, test, 0, SETTINGS)(lambda some: some.loss, [], "value")
    plain = LinearRegression().fit(fitting.hidden.numpy(), fitting.loss).predict(test.hidden.numpy())
    assert ((predicted - test.loss) ** 2).mean() == pytest.approx(((plain - test.loss) ** 2).mean(), rel=0.03)


def test_log_odds_of_an_event_mean_what_they_say_although_classes_are_of_unequal_size(fitting, test):
    predicted = converged_predictor(fitting, test, 0, SETTINGS)(lambda some: some.loss <= 1.0, [], "event")
    easy = test.loss <= 1.0
    assert (1 / (1 + np.exp(-predicted))).mean() == pytest.approx(easy.mean(), abs=0.05)
    assert np.corrcoef(predicted, easy)[0, 1] > 0.2


def test_an_event_that_never_varies_is_an_error_that_names_the_setting():
    with pytest.raises(UserError, match="easy_loss"):
        log_odds(np.arange(4.0), np.ones(4, bool), np.arange(4.0))


def test_training_stops_and_returns_to_the_weights_that_were_best_on_the_selection():
    inputs = torch.linspace(-1, 1, 64)[:, None]
    network = relu_network(1, [], 0)
    train_network(
        network,
        (inputs, inputs[:, 0]),
        torch.nn.functional.mse_loss,
        torch.optim.SGD(network.parameters(), lr=0.3),
        batch_size=64,
        epochs=200,
        seed=0,
        select=(inputs, -inputs[:, 0]),  # every step that fits makes this worse
        patience=3,
    )
    untrained = relu_network(1, [], 0)
    moved = abs(network[0].weight - untrained[0].weight).item()
    assert moved < 0.5 * abs(1 - untrained[0].weight).item()


def test_random_shares_part_all_tokens_as_the_report_did():
    fit, select, tested = random_shares(65_536, 0.70, 0.15, 0)
    assert len(tested) == 9_831  # the report's number of test tokens
    assert np.array_equal(np.sort(np.concatenate([fit, select, tested])), np.arange(65_536))
    assert len(random_shares(65_536, 0.8, 0.0, 0)[2]) == 13_108
