"""What readouts say about each token, in one pass over the vocabulary and without ever holding all logits.

Work proceeds in blocks of ROWS tokens x at most COLUMNS vocabulary entries. All passes over a block write into
buffers that are allocated once per call and stay in cache, so memory is independent of both sizes. The two largest
logits cost one cheap reduction: of every GROUP of entries only the largest is kept, and only the group that wins
over the whole vocabulary is computed again. Shapes: N tokens, V vocabulary, D width.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

STATISTICS = ("max_prob", "max_logit", "mean_logit", "margin", "entropy")
"""Label-free statistics of one readout, in the order they feed an exit classifier."""

ROWS, COLUMNS, GROUP = 256, 4096, 16
KEPT_BLOCKS = 8
"""Vocabulary blocks whose group maxima are kept before the two largest logits are taken from them."""
SAFE_LOGIT = 75.0
"""exp() of logits up to this size, summed over any vocabulary, stays within float32."""
LOWEST = -1e30
"""The logit of padding: its exponential is 0, and unlike infinity it can be multiplied by that 0."""


class Readout:
    """One exit's view of the vocabulary: its matrix W (V, D), and what can be known of W in advance.

    ``blocks`` (B, C, D) is W, padded with zeros to B equal blocks whose width C is a multiple of GROUP.
    """

    def __init__(self, matrix: Tensor):
        matrix = matrix.detach().float()
        size, width = matrix.shape
        count = -(-size // COLUMNS)
        columns = -(-size // (count * GROUP)) * GROUP
        padded = F.pad(matrix, (0, 0, 0, count * columns - size)).contiguous()
        self.matrix, self.blocks = padded[:size], padded.view(count, columns, width)
        self.mean = matrix.mean(0)
        self.largest_norm = matrix.norm(dim=1).max()


class _Softmax:
    """Running state of one exit's softmax over vocabulary blocks: the two largest logits, sums of e^z and z e^z.

    Sums are relative to a shift that keeps them finite. ``logits`` and ``peaks`` are buffers, used again by others.
    """

    def __init__(self, readout: Readout, tokens: int):
        count, columns, _ = readout.blocks.shape
        self.readout, self.columns, self.rows = readout, columns, min(tokens, ROWS * max(1, COLUMNS // columns))
        new = readout.blocks.new_empty
        self._logits = new(self.rows * columns)
        self._peaks = new(min(count, KEPT_BLOCKS) * self.rows * columns // GROUP)

    def start(self, inputs: Tensor) -> None:
        """Begin with the tokens ``inputs`` (N, D), at most ``rows`` of them."""
        rows = len(inputs)
        self.inputs = inputs
        self.logits = self._logits[: rows * self.columns].view(rows, self.columns)
        self.peaks = self._peaks[: len(self._peaks) // self.rows * rows].view(-1, rows, self.columns // GROUP)
        self.peak = inputs.new_full((rows,), -torch.inf)
        self.second = self.peak.clone()
        self.argmax = torch.zeros(rows, dtype=torch.long, device=inputs.device)
        self.total, self.weighted = (inputs.new_zeros(rows) for _ in range(2))
        # |z| <= |h| max|w|: where that bound is small enough no shift is needed, which saves a pass over the block.
        self.bounded = bool((inputs.norm(dim=1) * self.readout.largest_norm).max() < SAFE_LOGIT)
        self.shift = torch.zeros_like(self.peak) if self.bounded else self.peak

    def multiply(self, block: int) -> Tensor:
        """Logits (N, C) of a vocabulary block, valid until the next call."""
        torch.mm(self.inputs, self.readout.blocks[block].T, out=self.logits)
        padding = (block + 1) * self.columns - len(self.readout.matrix)
        if padding > 0:
            self.logits[:, -padding:] = LOWEST
        kept = block % KEPT_BLOCKS
        # Groups are strided, so that the reduction runs along contiguous rows.
        torch.amax(self.logits.unflatten(1, (GROUP, -1)), 1, out=self.peaks[kept])
        if kept == KEPT_BLOCKS - 1 or padding >= 0:
            self._two_largest(block - kept, kept + 1)
        return self.logits

    def _two_largest(self, first: int, count: int) -> None:
        """Take in the group maxima kept of ``count`` blocks."""
        peaks = self.peaks[:count]
        best, slot = (over_blocks := peaks.amax(0)).max(1)
        rivals = peaks.gather(2, slot.expand(count, -1).unsqueeze(2)).squeeze(2)  # (count, N): the slot in every block
        block = rivals.argmax(0)
        rivals.scatter_(0, block.unsqueeze(0), -torch.inf)
        over_blocks.scatter_(1, slot.unsqueeze(1), rivals.amax(0).unsqueeze(1))
        values, members = self._group(first + block, slot)
        member = values.argmax(1, keepdim=True)
        place = members.gather(1, member).squeeze(1)
        runner_up = torch.maximum(over_blocks.amax(1), values.scatter_(1, member, -torch.inf).amax(1))
        self.second = torch.maximum(torch.minimum(self.peak, best), torch.maximum(self.second, runner_up))
        self.argmax = torch.where(best > self.peak, place, self.argmax)
        self.peak = torch.maximum(self.peak, best)

    def _group(self, block: Tensor, slot: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and numbers of the entries of group ``slot`` (N,) of vocabulary block ``block`` (N,), each (N, GROUP)."""
        stride = self.columns // GROUP
        members = (block * self.columns + slot).unsqueeze(1) + stride * torch.arange(GROUP, device=slot.device)
        if len(self.readout.blocks) == 1:  # the logits are still at hand
            return self.logits.gather(1, members), members
        flat, step = self.readout.blocks.flatten(0, 1), max(1, ROWS * COLUMNS // (GROUP * self.inputs.shape[1]))
        values = torch.cat([  # embedding() is the fastest way to pick rows
            torch.bmm(F.embedding(entries, flat), x.unsqueeze(2)).squeeze(2)
            for entries, x in zip(members.split(step), self.inputs.split(step))
        ])
        return values.masked_fill_(members >= len(self.readout.matrix), LOWEST), members

    def exponentiate(self, out: Tensor) -> Tensor | float:
        """Write e^(z - shift) of the current block; returns the factor that rescales sums of earlier blocks."""
        if self.bounded:
            torch.exp(self.logits, out=out)
            scale = 1.0
        else:
            shift = torch.maximum(self.shift, self.logits.amax(1))
            torch.sub(self.logits, shift.unsqueeze(1), out=out).exp_()
            scale, self.shift = torch.exp(self.shift - shift), shift
        self.total = self.total * scale + out.sum(1)
        return scale

    def log_normaliser(self) -> Tensor:
        return self.shift + self.total.log()

    def loss(self, target: Tensor) -> Tensor:
        target_logit = torch.linalg.vecdot(self.inputs, F.embedding(target, self.readout.matrix))
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


@torch.no_grad()
def _full_precision(function):
    """Statistics stay float32 also where the training around them runs under bf16 autocast."""

    @functools.wraps(function)
    def wrapped(inputs, *arguments, **named):
        device = (inputs if isinstance(inputs, Tensor) else inputs[0]).device.type
        with torch.autocast(device, enabled=False):
            return function(inputs, *arguments, **named)

    return wrapped


@_full_precision
def token_statistics(inputs: list[Tensor], readouts: list[Readout], targets: Tensor | None = None) -> list[dict[str, Tensor]]:
    """Statistics of softmax(W_k h_k) for the readout inputs h_k (N, D) of one or more exits: per exit, tensors (N,).

    ``max_prob``, ``max_logit``, ``mean_logit``, ``margin`` (largest minus second largest logit),
    ``entropy`` (nats), ``argmax``; with targets (N,) also ``loss`` (nats) and ``correct_prob``; for every
    exit but the last ``divergence``, the KL divergence in nats of the last exit's prediction from this one's.
    """
    if not len(inputs[0]):
        raise ValueError("token_statistics needs at least one token")
    exits = [_Softmax(readout, len(inputs[0])) for readout in readouts]
    weight = torch.empty_like(exits[0]._logits)
    out: list[dict[str, Tensor]] = [{} for _ in inputs]
    for start in range(0, len(inputs[0]), exits[0].rows):
        here = slice(start, start + exits[0].rows)
        for exit, x in zip(exits, inputs):
            exit.start(x[here].float())
        for exit, part in enumerate(_row_statistics(exits, weight, None if targets is None else targets[here])):
            for name, values in part.items():  # copied: small tensors kept from every pass would fragment the heap
                if not start:
                    out[exit][name] = values.new_empty(len(inputs[0]))
                out[exit][name][here] = values
    return out


@torch.no_grad()
@_full_precision
def predictions(inputs: Tensor, readout: Readout, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Loss in nats and argmax, each (N,), of tokens that need no other statistics: the cheapest readout."""
    losses, best = [inputs.new_zeros(0)], [targets.new_zeros(0)]
    softmax = _Softmax(readout, len(inputs))
    for start in range(0, len(inputs), max(1, softmax.rows)):
        softmax.start(inputs[start : start + softmax.rows].float())
        for block in range(len(readout.blocks)):
            softmax.exponentiate(out=softmax.multiply(block))
        losses.append(softmax.loss(targets[start : start + softmax.rows]))
        best.append(softmax.argmax)
    return torch.cat(losses), torch.cat(best)


def _row_statistics(exits: list[_Softmax], weight: Tensor, target: Tensor | None) -> list[dict[str, Tensor]]:
    *earlier, last = exits
    weight = weight[: last.logits.numel()].view_as(last.logits)
    crossed = [torch.zeros_like(last.total) for _ in earlier]  # sums over v of z_k e^z_last
    for block in range(len(last.readout.blocks)):
        for exit in earlier:
            exit.multiply(block)
            scale = exit.exponentiate(out=weight)
            exit.weighted = exit.weighted * scale + weight.mul_(exit.logits).sum(1)
        last.multiply(block)
        scale = last.exponentiate(out=weight)
        for k, exit in enumerate(earlier):
            crossed[k] = crossed[k] * scale + exit.logits.mul_(weight).sum(1)
        last.weighted = last.weighted * scale + weight.mul_(last.logits).sum(1)
    out = [exit.statistics(target) for exit in exits]
    for exit, part, crossed_k in zip(earlier, out, crossed):  # KL(last || k) = E_last[z_last - z_k] - logZ_last + logZ_k
        expected = (last.weighted - crossed_k) / last.total
        part["divergence"] = (expected - last.log_normaliser() + exit.log_normaliser()).clamp_min(0)
    return out
