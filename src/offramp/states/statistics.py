"""What readouts say about each token, in one pass over the vocabulary and without ever holding all logits.

Work proceeds in blocks of ROWS tokens x COLUMNS vocabulary entries, small enough to stay in cache between
the matrix product and the reductions, so memory is independent of both sizes. The two largest logits cost
one cheap reduction: the largest of every GROUP of entries, after which only the winning group is looked at
again. Shapes: N tokens, V vocabulary, D width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

STATISTICS = ("max_prob", "max_logit", "mean_logit", "margin", "entropy")
"""Label-free statistics of one readout, in the order they feed an exit classifier."""

ROWS, COLUMNS, GROUP = 256, 4096, 16
SAFE_LOGIT = 75.0
"""exp() of logits up to this size, summed over any vocabulary, stays within float32."""


class Readout:
    """One exit's view of the vocabulary: its matrix W (V, D), and what can be known of W in advance."""

    def __init__(self, matrix: Tensor):
        self.matrix = matrix.detach().float().contiguous()
        self.mean = self.matrix.mean(0)
        self.largest_norm = self.matrix.norm(dim=1).max()


class _Softmax:
    """Running state of one exit's softmax over vocabulary blocks: the two largest logits, sums of e^z and z e^z.

    Sums are relative to a shift that keeps them finite.
    """

    def __init__(self, inputs: Tensor, readout: Readout):
        self.inputs, self.readout = inputs, readout
        self.peak = inputs.new_full((len(inputs),), -torch.inf)
        self.second = self.peak.clone()
        self.argmax = torch.zeros(len(inputs), dtype=torch.long, device=inputs.device)
        self.shift, self.total, self.weighted = (inputs.new_zeros(len(inputs)) for _ in range(3))
        # |z| <= |h| max|w|: where that bound is small enough no shift is needed, which saves a pass over the block.
        self.bounded = bool((inputs.norm(dim=1) * readout.largest_norm).max() < SAFE_LOGIT)

    def add(self, logits: Tensor, start: int) -> tuple[Tensor, Tensor | float]:
        """Take in a block of logits; returns e^(z - shift) and the factor that rescales sums of earlier blocks."""
        best, runner_up, place = _top_two(logits)
        self.second = torch.maximum(torch.minimum(self.peak, best), torch.maximum(self.second, runner_up))
        self.argmax = torch.where(best > self.peak, place + start, self.argmax)
        self.peak = torch.maximum(self.peak, best)
        if self.bounded:
            weight, scale = torch.exp(logits), 1.0
        else:
            weight = torch.exp(logits - self.peak.unsqueeze(1))
            scale = torch.exp(self.shift - self.peak) if start else 1.0
            self.shift = self.peak
        self.total = self.total * scale + weight.sum(1)
        return weight, scale

    def log_normaliser(self) -> Tensor:
        return self.shift + self.total.log()

    def loss(self, target: Tensor) -> Tensor:
        target_logit = torch.linalg.vecdot(self.inputs, self.readout.matrix[target])
        return (self.log_normaliser() - target_logit).clamp_min(0)

    def statistics(self, target: Tensor | None) -> dict[str, Tensor]:
        log_normaliser = self.log_normaliser()
        out = {
            "max_prob": torch.exp(self.peak - log_normaliser),
            "max_logit": self.peak,
            "mean_logit": self.inputs @ self.readout.mean,
            "margin": self.peak - self.second,
            "entropy": (log_normaliser - self.weighted / self.total).clamp_min(0),
            "argmax": self.argmax,
        }
        if target is not None:
            out["loss"] = self.loss(target)
            out["correct_prob"] = torch.exp(-out["loss"])
        return out


def token_statistics(inputs: list[Tensor], readouts: list[Readout], targets: Tensor | None = None) -> list[dict[str, Tensor]]:
    """Statistics of softmax(W_k h_k) for the readout inputs h_k (N, D) of one or more exits: per exit, tensors (N,).

    ``max_prob``, ``max_logit``, ``mean_logit``, ``margin`` (largest minus second largest logit),
    ``entropy`` (nats), ``argmax``; with targets (N,) also ``loss`` (nats) and ``correct_prob``; for every
    exit but the last ``divergence``, the KL divergence in nats of the last exit's prediction from this one's.
    """
    chunks: list[list[dict[str, Tensor]]] = [[] for _ in inputs]
    for start in range(0, len(inputs[0]), ROWS):
        rows = [x[start : start + ROWS].float() for x in inputs]
        target = None if targets is None else targets[start : start + ROWS]
        for exit, part in enumerate(_row_statistics(rows, readouts, target)):
            chunks[exit].append(part)
    if not chunks[0]:
        raise ValueError("token_statistics needs at least one token")
    return [{name: torch.cat([part[name] for part in parts]) for name in parts[0]} for parts in chunks]


def predictions(inputs: Tensor, readout: Readout, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Loss in nats and argmax, each (N,), of tokens that need no other statistics: the cheapest readout."""
    losses, best = [inputs.new_zeros(0)], [targets.new_zeros(0)]
    for start in range(0, len(inputs), ROWS):
        rows, target = inputs[start : start + ROWS].float(), targets[start : start + ROWS]
        softmax = _Softmax(rows, readout)
        for index, block in enumerate(readout.matrix.split(COLUMNS)):
            softmax.add(rows @ block.T, index * COLUMNS)
        losses.append(softmax.loss(target))
        best.append(softmax.argmax)
    return torch.cat(losses), torch.cat(best)


def _row_statistics(rows: list[Tensor], readouts: list[Readout], target: Tensor | None) -> list[dict[str, Tensor]]:
    exits = [_Softmax(x, readout) for x, readout in zip(rows, readouts)]
    *earlier, last = exits
    crossed = [torch.zeros_like(last.total) for _ in earlier]  # sums over v of z_k e^z_last
    for index, blocks in enumerate(zip(*(readout.matrix.split(COLUMNS) for readout in readouts))):
        logits = [x @ block.T for x, block in zip(rows, blocks)]
        for exit, z in zip(exits, logits):
            weight, scale = exit.add(z, index * COLUMNS)
            if exit is last:
                for k, z_k in enumerate(logits[:-1]):
                    crossed[k] = crossed[k] * scale + z_k.mul_(weight).sum(1)
            exit.weighted = exit.weighted * scale + weight.mul_(z).sum(1)
    out = [exit.statistics(target) for exit in exits]
    for exit, part, crossed_k in zip(earlier, out, crossed):  # KL(last || k) = E_last[z_last - z_k] - logZ_last + logZ_k
        expected = (last.weighted - crossed_k) / last.total
        part["divergence"] = (expected - last.log_normaliser() + exit.log_normaliser()).clamp_min(0)
    return out


def _top_two(logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Largest and second largest logit of every row and the column of the largest."""
    columns = logits.shape[1] // GROUP
    if columns < 2:
        best, place = F.pad(logits, (0, 1), value=-torch.inf).topk(2, dim=1)  # the last block may be one column wide
        return best[:, 0], best[:, 1], place[:, 0]
    grouped = logits[:, : GROUP * columns].unflatten(1, (GROUP, columns))  # strided groups: the reduction is contiguous
    peaks, group = grouped.amax(1).topk(2, dim=1)
    candidates = grouped.gather(2, group[:, :1].unsqueeze(1).expand(-1, GROUP, -1)).squeeze(2)
    values, member = candidates.topk(2, dim=1)
    best, second = values[:, 0], torch.maximum(values[:, 1], peaks[:, 1])
    place = member[:, 0] * columns + group[:, 0]
    for column in range(GROUP * columns, logits.shape[1]):  # fewer than GROUP left over
        value = logits[:, column]
        second = torch.maximum(second, torch.minimum(best, value))
        place = torch.where(value > best, column, place)
        best = torch.maximum(best, value)
    return best, second, place
