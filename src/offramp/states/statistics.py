"""What a readout says about each token, in one pass over the vocabulary and without ever holding all logits.

Every statistic is computed block by block: ROWS tokens times COLUMNS vocabulary entries, small enough to
stay in cache between the matrix product and the reductions. Memory is independent of the number of tokens
and of the vocabulary. Shapes: N tokens, V vocabulary, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor

STATISTICS = ("max_prob", "max_logit", "mean_logit", "margin", "entropy")
"""Label-free statistics of one readout, in the order they feed an exit classifier."""

ROWS, COLUMNS = 256, 2048


class Readout:
    """One exit's view of the vocabulary: matrix W (V, D) with its column mean kept at hand."""

    def __init__(self, matrix: Tensor):
        self.matrix = matrix.detach().float().contiguous()
        self.mean = self.matrix.mean(0)

    @property
    def vocab_size(self) -> int:
        return self.matrix.shape[0]


def token_statistics(inputs: Tensor, readout: Readout, targets: Tensor | None = None) -> dict[str, Tensor]:
    """Statistics of softmax(W h) for readout inputs h (N, D): each a tensor (N,).

    ``max_prob``, ``max_logit``, ``mean_logit``, ``margin`` (largest minus second largest logit),
    ``entropy`` (nats), ``argmax``, ``log_normaliser``; with targets (N,) also ``loss`` (nats) and
    ``correct_prob``.
    """
    parts = [_row_statistics(rows, readout) for rows in inputs.float().split(ROWS)]
    out = {name: torch.cat([part[name] for part in parts]) for name in parts[0]} if parts else _empty(inputs)
    if targets is not None:
        out |= target_statistics(inputs, readout, targets, out["log_normaliser"])
    return out


def target_statistics(inputs: Tensor, readout: Readout, targets: Tensor, log_normaliser: Tensor) -> dict[str, Tensor]:
    """``loss`` in nats and ``correct_prob`` of targets (N,), given the log-normalisers of the same tokens."""
    target_logit = torch.linalg.vecdot(inputs.float(), readout.matrix[targets])
    loss = (log_normaliser - target_logit).clamp_min(0)
    return {"loss": loss, "correct_prob": torch.exp(-loss)}


def predictions(inputs: Tensor, readout: Readout, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Loss in nats and argmax of tokens (N, D) that need no statistics: the cheapest readout."""
    losses, best = [], []
    for rows, target in zip(inputs.float().split(ROWS), targets.split(ROWS)):
        peak = rows.new_full((len(rows),), -torch.inf)
        total, argmax = torch.zeros_like(peak), torch.zeros_like(target)
        for start, logits in _logit_blocks(rows, readout.matrix):
            value, index = logits.max(dim=1)
            argmax = torch.where(value > peak, index + start, argmax)
            peak, old = torch.maximum(peak, value), peak
            total = total * torch.exp(old - peak) + logits.sub_(peak.unsqueeze(1)).exp_().sum(1)
        target_logit = torch.linalg.vecdot(rows, readout.matrix[target])
        losses.append((peak + total.log() - target_logit).clamp_min(0))
        best.append(argmax)
    return (torch.cat(losses), torch.cat(best)) if losses else (inputs.new_zeros(0), targets.new_zeros(0))


def divergence(inputs: Tensor, readout: Readout, full_inputs: Tensor, full_readout: Readout) -> Tensor:
    """KL(full depth || this exit) in nats, (N,), for readout inputs (N, D) of both.

    One pass: with p the full-depth softmax, KL = E_p[z_full - z_here] - logZ_full + logZ_here.
    """
    parts = []
    for rows, full_rows in zip(inputs.float().split(ROWS), full_inputs.float().split(ROWS)):
        peak = full_peak = rows.new_full((len(rows),), -torch.inf)
        total = full_total = difference = torch.zeros(len(rows), device=rows.device)
        blocks = zip(_logit_blocks(rows, readout.matrix), _logit_blocks(full_rows, full_readout.matrix))
        for (_, here), (_, full) in blocks:
            peak, old = torch.maximum(peak, here.amax(1)), peak
            total = total * torch.exp(old - peak) + torch.exp(here - peak.unsqueeze(1)).sum(1)
            full_peak, old = torch.maximum(full_peak, full.amax(1)), full_peak
            scale, weight = torch.exp(old - full_peak), torch.exp(full - full_peak.unsqueeze(1))
            full_total = full_total * scale + weight.sum(1)
            difference = difference * scale + torch.linalg.vecdot(weight, full.sub_(here))
        parts.append(difference / full_total - (full_peak + full_total.log()) + peak + total.log())
    return torch.cat(parts).clamp_min(0) if parts else inputs.new_zeros(0)


def _logit_blocks(rows: Tensor, matrix: Tensor):
    for start in range(0, len(matrix), COLUMNS):
        yield start, rows @ matrix[start : start + COLUMNS].T


def _row_statistics(rows: Tensor, readout: Readout) -> dict[str, Tensor]:
    """Online softmax over vocabulary blocks, carrying the two largest logits, sum e^z and sum z e^z."""
    peak = rows.new_full((len(rows),), -torch.inf)
    second, argmax = peak.clone(), torch.zeros(len(rows), dtype=torch.long, device=rows.device)
    total, weighted = torch.zeros_like(peak), torch.zeros_like(peak)
    for start, logits in _logit_blocks(rows, readout.matrix):
        value, index = logits.max(dim=1)
        new_peak = torch.maximum(peak, value)
        scale = torch.exp(peak - new_peak)
        weight = torch.exp(logits - new_peak.unsqueeze(1))
        total = total * scale + weight.sum(1)
        weighted = weighted * scale + torch.linalg.vecdot(weight, logits)
        runner_up = logits.scatter_(1, index.unsqueeze(1), -torch.inf).amax(1)
        second = torch.maximum(torch.minimum(peak, value), torch.maximum(second, runner_up))
        argmax = torch.where(value > peak, index + start, argmax)
        peak = new_peak
    log_normaliser = peak + total.log()
    return {
        "max_prob": torch.exp(peak - log_normaliser),
        "max_logit": peak,
        "mean_logit": rows @ readout.mean,
        "margin": peak - second,
        "entropy": (log_normaliser - weighted / total).clamp_min(0),
        "argmax": argmax,
        "log_normaliser": log_normaliser,
    }


def _empty(inputs: Tensor) -> dict[str, Tensor]:
    names = (*STATISTICS, "log_normaliser")
    return {name: inputs.new_zeros(0) for name in names} | {"argmax": inputs.new_zeros(0, dtype=torch.long)}
