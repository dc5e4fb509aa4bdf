"""Translators in closed form: the affine map of an exit's normed states that comes closest to full depth's.

Least squares needs no gradients and keeps no states, only sums over tokens (the normal equations), which one
pass over the text adds up and several processes, or stretches of text, add to each other. A ridge keeps the
map from fitting what little text happens to say; it is chosen by the error on text that was held out, which
follows from sums as well. With few tokens this is what makes a checkpoint's early exits readable at all
(arXiv 2303.09435).

The inputs are the states behind the model's final norm, which is what a translator maps (``nn.translators``):
a norm by the second moment, with or without its mean taken off first, so maps are the same thing for models
with either.

Shapes: N tokens, D width, R rank.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from offramp.errors import UserError
from offramp.machine.device import autocast
from offramp.machine.processes import Processes
from offramp.models.pretrained import PretrainedLM
from offramp.nn.translators import Affine, LowRank
from offramp.training.losses import VocabularySample, likeliest, total_divergences

RIDGES = tuple(10.0 ** (place / 2) for place in range(-14, 3))
"""Ridges to choose from, as shares of the inputs' mean variance."""
SCALES = (0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0, 1.1)
"""Scales of a map to choose from."""
TOKENS_PER_FEATURE = 4
"""Fewest tokens that a map is fitted on, per dimension of the state."""
CHUNK = 4096
"""Tokens taken to float64 at a time."""


class NormalEquations:
    """Sums over tokens from which the best affine maps of several exits follow, in float64.

    Per exit two matrices, (D + 1, D + 1) and (D + 1, D), whatever the number of tokens: the products of its
    inputs, with a 1 behind them, with each other and with the wanted outputs. ``device`` is where they lie,
    which must have float64.
    """

    def __init__(self, exits: int, width: int, device: torch.device | str = "cpu"):
        zeros = torch.zeros(exits, width + 1, width + 1, dtype=torch.float64, device=device)
        self.products = zeros
        """Of every exit (D + 1, D + 1), inputs with inputs; the last row and column are their sums."""
        self.crossed = zeros[..., :width].clone()
        """Of every exit (D + 1, D), inputs with outputs; the last row are the sums of the outputs."""
        self.squares = torch.zeros((), dtype=torch.float64, device=device)
        """The sum of all squared outputs."""

    @property
    def tokens(self) -> int:
        """How many tokens were added."""
        return int(self.products[0, -1, -1].item()) if len(self.products) else 0

    def add(self, inputs: Sequence[Tensor], outputs: Tensor) -> None:
        """Add N tokens: the normed states (N, D) at every exit, and those at full depth.

        UserError, with nothing added, where one is not finite.
        """
        for place, part in enumerate((*inputs, outputs)):
            if not torch.isfinite(part).all():
                where = f"exit {place}" if place < len(inputs) else "full depth"
                raise UserError(
                    f"normed hidden states at {where} are not finite numbers; the model cannot run this text "
                    "in this precision: set it to fp32, or choose another checkpoint"
                )
        device = self.products.device
        for start in range(0, len(outputs), CHUNK):
            rows = slice(start, start + CHUNK)
            wanted = outputs[rows].to(device).double()
            for exit, part in enumerate(inputs):
                features = torch.cat([part[rows].to(device).double(), wanted.new_ones(len(wanted), 1)], dim=1)
                self.products[exit].addmm_(features.T, features)
                self.crossed[exit].addmm_(features.T, wanted)
            self.squares += wanted.square().sum()

    def __add__(self, other: NormalEquations) -> NormalEquations:
        """The sums over both stretches of text."""
        total = NormalEquations(0, 0)
        total.load_state_dict(
            {name: value + other.state_dict()[name] for name, value in self.state_dict().items()}
        )
        return total

    def over(self, processes: Processes) -> NormalEquations:
        """The sums over the text of all processes, the same bits in each of them."""
        total = NormalEquations(0, 0)
        total.load_state_dict(processes.sum_tensors(self.state_dict()))
        return total

    def state_dict(self) -> dict[str, Tensor]:
        """All sums by name."""
        return {"products": self.products, "crossed": self.crossed, "squares": self.squares}

    def load_state_dict(self, sums: dict[str, Tensor]) -> None:
        """Take over the sums that ``state_dict`` gave."""
        self.products, self.crossed, self.squares = (
            sums[name] for name in ("products", "crossed", "squares")
        )

    def moments(self, exit: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Means (D,) of inputs and outputs of an exit; covariances (D, D) of inputs, and of inputs with
        outputs."""
        products, crossed = self.products[exit] / self.tokens, self.crossed[exit] / self.tokens
        mean, wanted = products[-1, :-1], crossed[-1]
        covariance = products[:-1, :-1] - torch.outer(mean, mean)
        return mean, wanted, covariance, crossed[:-1] - torch.outer(mean, wanted)

    def error(self, exit: int, weight: Tensor, bias: Tensor) -> float:
        """Mean squared error per token of the map ``weight`` y + ``bias``, over the outputs' variance.

        1 is no better than their mean.
        """
        parts = torch.cat([weight, bias.unsqueeze(1)], dim=1)
        wrong = self.squares - 2 * (parts.T * self.crossed[exit]).sum()
        wrong = wrong + ((parts @ self.products[exit]) * parts).sum()
        spread = self.squares - self.crossed[exit, -1].square().sum() / self.tokens
        return float(wrong / spread)


@dataclass(frozen=True)
class Fit:
    """The map of an exit, ``weight`` y + ``bias`` for normed states y, in float64."""

    weight: Tensor
    """(D, D)"""
    bias: Tensor
    """(D,)"""
    ridge: float
    """What was added to the variance of every input, as a share of their mean variance."""
    error: float
    """Mean squared error on the text that was held out, as a share of the outputs' variance there."""
    scale: float = 1.0
    """What the map is multiplied by. A prediction by least squares stands for the mean of many states, and
    their mean logits are surer than their predictions are on average, so it is mostly below 1."""


def require_tokens(tokens: int, width: int, field: str) -> None:
    """UserError, naming the ``field`` that says how many, where ``tokens`` are too few to fit maps of
    ``width`` features."""
    if tokens < TOKENS_PER_FEATURE * width:
        raise UserError(
            f"{field}: {tokens} tokens are too few to fit maps of {width} features by least squares; give at "
            f"least {TOKENS_PER_FEATURE * width}"
        )


def fit_maps(train: NormalEquations, held_out: NormalEquations) -> list[Fit]:
    """The map of every exit fitted to ``train``, each with the ridge of RIDGES that errs least on
    ``held_out``."""
    return [_fit_map(exit, train, held_out) for exit in range(len(train.products))]


def _fit_map(exit: int, train: NormalEquations, held_out: NormalEquations) -> Fit:
    mean, wanted, covariance, crossed = train.moments(exit)
    values, vectors = torch.linalg.eigh(covariance)  # one decomposition serves every ridge
    values, turned, variance = values.clamp_min(0), vectors.T @ crossed, covariance.diagonal().mean()
    best: Fit | None = None
    for ridge in RIDGES:
        weight = (vectors @ (turned / (values + ridge * variance).unsqueeze(1))).T
        bias = wanted - weight @ mean
        error = held_out.error(exit, weight, bias)
        if best is None or error < best.error:
            best = Fit(weight, bias, ridge, error)
    assert best is not None  # there are ridges
    return best


@torch.no_grad()
def begin(
    model: PretrainedLM, train: NormalEquations, held_out: NormalEquations, states: Sequence[Tensor]
) -> list[Fit]:
    """Fit the maps of all exits and make them the model's translators, which are of a kind of LINEAR.

    ``states`` are hidden states (N, D) of some tokens that were held out, at every exit and at full depth:
    by their divergence from full depth the scale of every map is chosen.
    """
    last = len(model.translators)
    matrix = model.readout_matrix(last).detach().float()
    *inputs, wanted = (model.norm(x.float()) for x in states)
    fits = [
        replace(fit, scale=_best_scale(fit, y, wanted, matrix))
        for fit, y in zip(fit_maps(train, held_out), inputs)
    ]
    place(model, fits, train)
    return fits


@torch.no_grad()
def place(model: PretrainedLM, fits: Sequence[Fit], train: NormalEquations) -> None:
    """Make the maps fitted to ``train``, each times its scale, the model's translators: of low rank, those
    that come closest to them on ``train``."""
    for exit, (translator, fit) in enumerate(zip(model.translators, fits)):
        weight, bias = fit.scale * fit.weight, fit.scale * fit.bias
        if isinstance(translator, LowRank):
            mean, _, covariance, _ = train.moments(exit)
            rank = translator.first.out_features
            first, last = _best_factors(weight, covariance, rank)
            translator.first.weight[: len(first)].copy_(first)
            translator.factor.zero_()
            bias = bias + (weight - last @ first) @ mean
            weight = F.pad(last, (0, rank - last.shape[1]))  # a rank above D has nothing more to say
        else:
            weight = weight - torch.eye(len(weight), dtype=weight.dtype, device=weight.device)
        linear = cast("Affine | LowRank", translator).last
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)


def _best_scale(fit: Fit, inputs: Tensor, wanted: Tensor, matrix: Tensor) -> float:
    """The scale of SCALES at which the map's predictions diverge least from full depth's.

    ``inputs`` and ``wanted`` are normed states (N, D); divergences are taken over a sample of the vocabulary
    whose readout matrix is ``matrix`` (V, D).
    """
    device = fit.weight.device
    mapped = (inputs.to(device).double() @ fit.weight.T + fit.bias).float().to(wanted.device)
    certain = torch.zeros(len(matrix), dtype=torch.bool, device=matrix.device)
    certain[likeliest(wanted, matrix).flatten()] = True
    sample = VocabularySample.draw(certain, torch.Generator().manual_seed(0))
    predictions = [*(scale * mapped for scale in SCALES), wanted]
    rows = [sample.rows(matrix)] * len(predictions)
    totals = torch.stack(total_divergences(predictions, rows, sample.log_weights))
    return SCALES[int(totals.argmin())]


def _best_factors(weight: Tensor, covariance: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """V (R, D) and U (D, R), with R at most D, of the U V that is closest to ``weight`` (D, D) on inputs of
    this covariance.

    Reduced-rank regression: the first R left singular vectors of weight x covariance^(1/2) span what U V
    reaches.
    """
    outputs = weight @ covariance @ weight.T
    last = torch.linalg.eigh(outputs).eigenvectors[:, -rank:]
    return last.T @ weight, last


@torch.no_grad()
def sums(
    model: PretrainedLM,
    batches: Iterable[Tensor],
    *,
    precision: str = "fp32",
    device: torch.device | str = "cpu",
) -> NormalEquations:
    """The normal equations of all exits of ``model``, on ``device``, over batches of tokens (B, T).

    One pass without gradients; ``precision`` is that of the layers. UserError where a state is not finite.
    """
    device = torch.device(device)
    total = NormalEquations(len(model.translators), model.config.width, sums_device(device))
    for tokens in batches:
        with autocast(device, precision):
            states = model(tokens.to(device))
        *inputs, outputs = (model.norm(x.float()).flatten(0, 1) for x in states)
        total.add(inputs, outputs)
    return total


def sums_device(device: torch.device) -> torch.device:
    """Where sums of what ``device`` computes lie: there, or on the CPU where it has no float64."""
    return torch.device("cpu") if device.type == "mps" else device
