"""The fitted softmax temperature, where the right one is known."""

from __future__ import annotations

import pytest
import torch

from offramp.analysis.temperature import LIMITS, fit_temperature
from offramp.errors import UserError
from offramp.exits.calibration import expected_calibration_error
from offramp.states.statistics import Readout, predictions


def calibrated(tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Readout inputs, a matrix, and targets drawn from its softmax: the right temperature is 1."""
    generator = torch.Generator().manual_seed(0)
    inputs, matrix = torch.randn(tokens, 8, generator=generator), torch.randn(60, 8, generator=generator)
    targets = torch.multinomial((inputs @ matrix.T).softmax(1), 1, generator=generator)[:, 0]
    return inputs, matrix, targets


def ece(inputs: torch.Tensor, matrix: torch.Tensor, targets: torch.Tensor) -> float:
    _, argmax, max_prob = predictions(inputs, Readout(matrix), targets)
    return expected_calibration_error(max_prob.numpy(), (argmax == targets).numpy())


@pytest.mark.parametrize("factor", [0.4, 1.0, 3.0])
def test_logits_sharpened_by_a_factor_give_it_back_and_are_calibrated_by_it(factor):
    inputs, matrix, targets = calibrated(8_000)
    sharp = inputs * factor
    found = fit_temperature(sharp, Readout(matrix), targets)
    assert found == pytest.approx(factor, rel=0.03)
    before, after = ece(sharp, matrix, targets), ece(sharp / found, matrix, targets)
    assert after < 0.02 and (factor == 1 or after < before / 3)


def test_the_temperature_minimises_the_loss():
    inputs, matrix, targets = calibrated(3_000)
    readout = Readout(matrix)
    nll = lambda t: predictions(2 * inputs / t, readout, targets)[0].double().mean()  # noqa: E731
    found = fit_temperature(2 * inputs, readout, targets)
    assert nll(found) < min(nll(found * 0.97), nll(found * 1.03))


def test_predictions_that_are_always_right_want_to_be_as_sharp_as_allowed():
    inputs, matrix, _ = calibrated(500)
    targets = (inputs @ matrix.T).argmax(1)
    assert fit_temperature(inputs, Readout(matrix), targets) == pytest.approx(LIMITS[0], rel=0.02)


def test_no_tokens_are_refused():
    with pytest.raises(UserError, match="no tokens"):
        fit_temperature(torch.zeros(0, 8), Readout(torch.randn(5, 8)), torch.zeros(0, dtype=torch.long))
