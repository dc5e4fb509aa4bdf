"""Low-rank readouts: what survives at rank r of logits, of confidence signals and of their ranking.

A readout W (V, D) is replaced by W_r = W L_r R_r^T, which costs 2 r (D + V) instead of 2 D V operations. Four
choices of L and R are compared (VARIANTS). The report loss-prediction tried the first alone and declared low
rank dead; the problem that matters is not min |W - W_r| but min E|W h - W_r h|^2, which the weighted ones
solve (SVD of W C^(1/2), C the second moment of h).

Since z_r = W h_r with h_r = L_r R_r^T h, whatever is linear or quadratic in the logits follows from W^T W and
the second moment of h, both (D, D), and never touches the vocabulary. Only maxima and normalisers do: they
are taken for all ranks in one pass, the logits at a rank being those at the rank before plus the components
in between, so that all ranks together cost one product. Shapes: N tokens, V vocabulary, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from offramp.analysis.rank_pass import CHUNK, SIGNALS, measure_ranks
from offramp.errors import UserError
from offramp.exits.ranking import loss_gap, most_confident
from offramp.states.statistics import Readout
from offramp.states.store import States

VARIANTS = ("plain", "centred", "weighted", "weighted_centred")
"""plain is the SVD of W, weighted the best for E|W h - W_r h|^2.

The centred ones are the same of h - E h and keep W E h exactly, as a bias.
"""
RANKED = ("softmax", "max_minus_mean")
"""Signals whose separation of the losses is reported at every rank."""
NORM_EPS = 1e-6
"""As in the final norm of the models."""
NULL = 1e-12
"""Eigenvalues of W^T W below this share of the largest count as zero: singular values of W beyond float32."""


@dataclass(frozen=True)
class Moments:
    """First and second moment, float64, of vectors (N, D): mean (D,) and uncentred second (D, D)."""

    mean: Tensor
    second: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> Moments:
        mean, second = (
            torch.zeros(size, dtype=torch.float64) for size in (rows.shape[1], (rows.shape[1],) * 2)
        )
        for part in rows.split(CHUNK):
            exact = part.double()
            mean += exact.sum(0)
            second += exact.T @ exact
        return cls(mean / len(rows), second / len(rows))

    def mapped(self, matrix: Tensor, shift: Tensor) -> Tensor:
        """Second moment (D, D) of ``matrix`` h + ``shift``."""
        crossed = torch.outer(matrix @ self.mean, shift)
        return matrix @ self.second @ matrix.T + crossed + crossed.T + torch.outer(shift, shift)


@dataclass(frozen=True)
class Approximation:
    """Factors of W h ~ W (mean + L_r R_r^T (h - mean)).

    The columns of ``left`` and ``right`` (D, D) go by falling ``spectrum`` (D,).
    """

    mean: Tensor
    left: Tensor
    right: Tensor
    spectrum: Tensor

    def coverage(self, rank: int) -> float:
        """Share of the sum of squared singular values that the first ``rank`` hold."""
        return float(self.spectrum[:rank].sum() / self.spectrum.sum())

    def affine(self, rank: int) -> tuple[Tensor, Tensor]:
        """T (D, D) and t (D,) of h_r = T h + t, the state whose exact logits are the logits at ``rank``."""
        matrix = self.left[:, :rank] @ self.right[:, :rank].T
        return matrix, self.mean - matrix @ self.mean

    def state(self, inputs: Tensor, rank: int) -> Tensor:
        """h_r (N, D), float32, of readout inputs (N, D)."""
        matrix, shift = self.affine(rank)
        return torch.cat([(part.double() @ matrix.T + shift).float() for part in inputs.split(CHUNK)])


def approximate(matrix: Tensor, fit: Tensor, variants: Sequence[str] = VARIANTS) -> dict[str, Approximation]:
    """Factors of the readout matrix (V, D) for the readout inputs ``fit`` (M, D), from (D, D) eigenproblems.

    With G = W^T W = V S^2 V^T, plain is L = R = V. For any second moment C, W C W^T has the eigenvectors W
    G^(-1/2) P, P those of G^(1/2) C G^(1/2); hence L = G^(-1/2) P and R = G^(1/2) P, complete whatever the
    rank of C. UserError for an unknown variant.
    """
    for name in variants:
        if name not in VARIANTS:
            raise UserError(f"low rank variant {name!r} is not known; use {', '.join(VARIANTS)}")
    gram, moments = _gram(matrix), Moments.of(fit)
    squares, basis = torch.linalg.eigh(gram)
    squares = squares.clamp_min(0)
    kept = squares > NULL * squares.max()
    root = (basis * squares.sqrt()) @ basis.T
    inverse = (basis * torch.where(kept, squares, torch.inf).rsqrt()) @ basis.T
    out = {}
    for name in variants:
        centred = name.endswith("centred")
        mean = moments.mean if centred else torch.zeros_like(moments.mean)
        if name.startswith("weighted"):
            spectrum, vectors = torch.linalg.eigh(root @ (moments.second - torch.outer(mean, mean)) @ root)
            left, right = inverse @ vectors, root @ vectors
        else:
            spectrum, left, right = squares, basis, basis
        out[name] = Approximation(mean, left.flip(1), right.flip(1), spectrum.flip(0).clamp_min(0))
    return out


def logit_fidelity(
    matrix: Tensor, approximation: Approximation, inputs: Tensor, ranks: Sequence[int]
) -> list[tuple[float, float]]:
    """Pearson correlation and mean squared error of logits at each rank, over tokens x vocabulary.

    Exact sums in float64 from (D, D) matrices: no logit is computed. matrix (V, D), inputs (N, D).
    """
    return _fidelity(
        _gram(matrix), matrix.double().mean(0), len(matrix), approximation, Moments.of(inputs), ranks
    )


def _fidelity(
    gram: Tensor,
    column_mean: Tensor,
    size: int,
    approximation: Approximation,
    moments: Moments,
    ranks: Sequence[int],
) -> list[tuple[float, float]]:
    """``logit_fidelity`` from W^T W (D, D), the mean row of W (D,) and its V rows."""

    def over_logits(second: Tensor) -> float:
        """Mean square of the logits of states with that second moment (D, D)."""
        return float((gram * second).sum()) / size

    mean = float(column_mean @ moments.mean)
    variance = over_logits(moments.second) - mean**2
    out = []
    for rank in ranks:
        linear, shift = approximation.affine(rank)
        mean_at_rank = float(column_mean @ (linear @ moments.mean + shift))
        variance_at_rank = over_logits(moments.mapped(linear, shift)) - mean_at_rank**2
        crossed = linear @ moments.second + torch.outer(shift, moments.mean)
        covariance = over_logits(crossed) - mean_at_rank * mean
        error = over_logits(moments.mapped(linear - torch.eye(len(linear), dtype=linear.dtype), shift))
        product = variance_at_rank * variance
        out.append((covariance / product**0.5 if product > 0 else float("nan"), max(error, 0.0)))
    return out


def _gram(matrix: Tensor) -> Tensor:
    return sum(part.T @ part for part in (block.double() for block in matrix.split(CHUNK)))


def rank_sweep(
    matrix: Tensor,
    fit: Tensor,
    inputs: Tensor,
    targets: Tensor,
    ranks: Sequence[int],
    variants: Sequence[str] = VARIANTS,
) -> list[dict[str, Any]]:
    """Every variant at every rank, in one pass.

    matrix (V, D) is the readout; fit (M, D) and inputs (N, D) are readout inputs; targets (N,).
    Means and covariances come from ``fit``, measures from ``inputs``: give different tokens. One row per
    variant and rank: ``variant, rank, tokens``; ``coverage`` of the variant's own spectrum; ``flop_share`` (r
    (D + V) / (D V), above 1 where nothing is saved); ``logit_corr``, ``logit_mse``; for every signal
    ``<signal>_corr``, Pearson with its exact value; for softmax and max_minus_mean ``<signal>_gap`` and
    ``<signal>_oracle_share``, the exact losses of the less confident half minus those of the other;
    ``agreement`` with the exact argmax; ``loss`` in nats of the target at that rank. What does not vary has
    no correlation (NaN). Memory beyond the arguments: V x D per variant and four numbers per token, variant
    and rank. UserError for a rank outside 1..D or an unknown variant.
    """
    ranks, width = sorted(set(ranks)), matrix.shape[1]
    for rank in ranks:
        if not 1 <= rank <= width:
            raise UserError(
                f"low rank: rank {rank} is not possible for a readout of width {width}; choose from 1 to "
                f"{width}"
            )
    approximations, moments = approximate(matrix, fit, variants), Moments.of(inputs)
    gram, column_mean = _gram(matrix), matrix.double().mean(0)
    exact, measured = measure_ranks(inputs, Readout(matrix), targets, approximations, ranks)
    loss, count = exact["loss"], len(inputs) // 2
    best = loss_gap(most_confident(-loss, count), loss)
    rows = []
    for name, approximation in approximations.items():
        fidelity = _fidelity(gram, column_mean, len(matrix), approximation, moments, ranks)
        for rank, (corr, mse) in zip(ranks, fidelity):
            at_rank = measured[name, rank]
            row = {
                "variant": name,
                "rank": rank,
                "tokens": len(inputs),
                "coverage": approximation.coverage(rank),
                "flop_share": rank * (width + len(matrix)) / (width * len(matrix)),
                "logit_corr": corr,
                "logit_mse": mse,
                "agreement": at_rank["agreement"],
                "loss": at_rank["loss"],
            }
            row |= {f"{signal}_corr": _pearson(at_rank[signal], exact[signal]) for signal in SIGNALS}
            for signal in RANKED:
                gap = loss_gap(most_confident(at_rank[signal], count), loss)
                row |= {f"{signal}_gap": gap, f"{signal}_oracle_share": gap / best if best else float("nan")}
            rows.append(row)
    return rows


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    a, b = (values - values.mean(dtype=np.float64) for values in (a, b))
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale else float("nan")


def readout_inputs(states: States, exit: int, max_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
    """Readout matrix (V, D), readout inputs (N, D) and targets (N,) of evenly spaced tokens.

    There are at most ``max_tokens`` of them. Readout inputs are hidden states after the exit's final norm,
    where the model has one. UserError for an exit that the states do not have, for fewer than two tokens, and
    for states of a checkpoint.
    """
    if not 0 <= exit < states.num_exits:
        raise UserError(
            f"low rank: exit {exit} is not in {states.artifact.path}; choose from 0 to {states.num_exits - 1}"
        )
    if max_tokens < 2:
        raise UserError(f"low rank: max_tokens = {max_tokens} leaves nothing to correlate; choose at least 2")
    stored = states.readouts()
    mask = np.zeros(states.num_tokens, bool)
    mask[np.linspace(0, states.num_tokens - 1, min(max_tokens, states.num_tokens)).astype(int)] = True
    inputs = states.hidden(exit, mask)
    if f"norm_{exit}" in stored:
        inputs = F.rms_norm(inputs, inputs.shape[1:], stored[f"norm_{exit}"].float(), NORM_EPS)
    matrix = stored[f"matrix_{exit}"] if f"matrix_{exit}" in stored else stored["matrix_0"]
    return matrix.float(), inputs, torch.from_numpy(states.column("target")[mask]).long()


def sweep_states(
    fit: States,
    states: States,
    exit: int,
    ranks: Sequence[int],
    max_tokens: int,
    variants: Sequence[str] = VARIANTS,
) -> list[dict[str, Any]]:
    """``rank_sweep`` of one exit, fitted on tokens of ``fit`` and measured on those of ``states``.

    These are two splits of one model. UserError where the two come from different models.
    """
    (matrix_of_fit, fitted, _), (matrix, inputs, targets) = (
        readout_inputs(part, exit, max_tokens) for part in (fit, states)
    )
    if not torch.equal(matrix_of_fit, matrix):
        raise UserError(
            f"{fit.artifact.path} and {states.artifact.path} hold readouts of different models; collect both "
            "again"
        )
    return rank_sweep(matrix, fitted, inputs, targets, ranks, variants)
