"""How much of a confidence signal a network reads off the hidden state (report loss-prediction, table 2b)."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp.analysis.distribution import finite
from offramp.errors import UserError
from offramp.training.loop import Best, Row, Training

WIDTH, LEARNING_RATE = 128, 5e-3
BATCH, STEPS = 1024, 40
"""Rows of a step at most, and steps of an epoch at least."""
MAX_EPOCHS, PATIENCE = 16, 3
SELECT_SHARE = 0.1
"""Part of the fit rows, the last in the order given, on which early stopping looks."""
FEW = 5
"""Below this many documents, sequences are held out instead of documents."""


def held_out_split(document: np.ndarray, sequence: np.ndarray, seed: int, share: float = 0.2) -> np.ndarray:
    """Mask (N,) of the tokens to fit on: all but about ``share`` of the documents.

    Sequences take their place where documents are few. The report loss-prediction split single tokens at
    random, so that neighbours of every test token were fitted on.
    """
    groups = document if len(np.unique(document)) >= FEW else sequence
    _, place, size = np.unique(groups, return_inverse=True, return_counts=True)
    if len(size) < 2:
        raise UserError(
            "sequence: all tokens are of one sequence; predictability needs another one to be judged on"
        )
    order = np.random.default_rng(seed).permutation(len(size))
    held = order[: max(1, int((np.cumsum(size[order]) <= share * len(place)).sum()))]
    return ~np.isin(place, held)


def predictability(hidden: Tensor, score: np.ndarray, fit_mask: np.ndarray, seed: int) -> float | None:
    """Pearson correlation of a score (N,) with its prediction from hidden states (N, D), held out.

    It is over the rows outside ``fit_mask``. A network D-128-1 (ReLU) regresses the standardised score; AdamW
    until the error on the last SELECT_SHARE of the fit rows stops falling. None where the score or the
    prediction does not vary; UserError with fewer than 20 fit rows or 3 others.
    """
    rows = torch.from_numpy(np.flatnonzero(fit_mask))
    others = torch.from_numpy(np.flatnonzero(~fit_mask))
    if len(rows) < 20 or len(others) < 3:
        raise UserError(
            f"fit_mask: {len(rows)} rows to fit on and {len(others)} others; predictability needs 20 and 3"
        )
    wanted = torch.from_numpy(finite("score", score))
    fit, select = rows.tensor_split([len(rows) - max(2, int(SELECT_SHARE * len(rows)))])
    spread = wanted[fit].std()
    if spread == 0:
        return None
    wanted = ((wanted - wanted[fit].mean()) / spread).float()
    mean, scale = hidden[fit].mean(0), 1 / hidden[fit].std(0).clamp_min(1e-6)

    def inputs(chosen: Tensor) -> Tensor:
        return (hidden[chosen] - mean) * scale

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Linear(hidden.shape[1], WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1), nn.Flatten(0)
        )
    _fit(network, (inputs(fit), wanted[fit]), (inputs(select), wanted[select]), seed)
    with torch.no_grad():
        predicted = network(inputs(others))
    correlation = torch.corrcoef(torch.stack([predicted, wanted[others]]).double())[0, 1].item()
    return correlation if math.isfinite(correlation) else None


def _fit(network: nn.Module, fit: tuple[Tensor, Tensor], select: tuple[Tensor, Tensor], seed: int) -> None:
    """Leave ``network`` with the weights that did best on ``select``."""
    optimiser = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE)
    generator, batch = torch.Generator().manual_seed(seed), min(BATCH, -(-len(fit[0]) // STEPS))

    def epoch(number: int) -> None:
        for group in optimiser.param_groups:
            group["lr"] = LEARNING_RATE * (1 + math.cos(math.pi * number / MAX_EPOCHS)) / 2
        for rows in torch.randperm(len(fit[0]), generator=generator).split(batch):
            optimiser.zero_grad(set_to_none=True)
            F.mse_loss(network(fit[0][rows]), fit[1][rows]).backward()
            optimiser.step()

    def look(epochs: int) -> tuple[list[Row], float]:
        with torch.no_grad():
            return [], F.mse_loss(network(select[0]), select[1]).item()

    Training(
        step=epoch,
        look=look,
        steps=MAX_EPOCHS,
        looks=range(1, MAX_EPOCHS + 1),
        selection=Best(network, PATIENCE),
    ).run()
