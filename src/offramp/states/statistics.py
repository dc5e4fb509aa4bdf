"""Statistics of every token at every exit: loss, probabilities, entropy, margin, divergence.

They are computed in one pass over the vocabulary, without ever holding all logits. Work proceeds in blocks of
rows x columns (tokens x vocabulary entries) that stay in a CPU's caches; every pass over a block writes into
buffers allocated once per call. A block leaves a few numbers per token behind, combined for a whole tile of
tokens at a time, so memory is independent of both sizes. The two largest logits cost one cheap reduction: of
every group of entries only the largest is kept, and only the group with the largest of all is looked into
again.

Shapes: N tokens, V vocabulary, D width; within a tile T tokens, B vocabulary blocks, C columns, G entries a
group; R rows of a block.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Concatenate, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

STATISTICS = ("max_prob", "max_logit", "mean_logit", "margin", "entropy")
"""Label-free statistics of one readout, in the order they feed an exit classifier."""

SATURATION = "saturation"
"""The name of the label-free statistic that needs no readout: see ``saturation``."""

COLUMNS, GROUP, SLOTS = 2048, 32, 64
"""Most columns of a block, most entries of a group, and a divisor of the number of groups."""
BLOCK = {"cpu": 2**20, "other": 2**24}
"""Logits of one block, by device: few enough to stay in a CPU's caches, many enough to be worth a call."""
TILE = 2**20
"""Group maxima kept at one time: it limits the tokens of a tile."""
SAFE_LOGIT = 70.0
"""The size up to which logits z need no shift: z exp(z), summed over any vocabulary, stays within float32."""


class Readout:
    """The readout matrix W (V, D) of an exit, float32, and what can be computed of it in advance.

    ``blocks`` are consecutive parts of W with C = ``columns`` rows each, fewer in the last; C is a multiple
    of ``group``. ``mean`` is the mean row (D,), ``largest_norm`` the largest Euclidean norm of a row.
    """

    def __init__(self, matrix: Tensor):
        self.matrix = matrix.detach().float().contiguous()
        size = len(self.matrix)
        # The maxima of all groups and the entries of one are looked through: best about equally many.
        self.group = min(GROUP, 2 ** round(math.log2(max(2.0, size**0.5 / 2))))
        unit = self.group * SLOTS
        self.columns = min(-(-size // unit), max(1, COLUMNS // unit)) * unit
        self.blocks = self.matrix.split(self.columns)
        self.mean = self.matrix.mean(0)
        self.largest_norm = self.matrix.norm(dim=1).max()


class Softmax:
    """The softmax of one exit over a tile of tokens, built up block by block of the vocabulary.

    Of each block it keeps the sums of e^z and z e^z over its logits z, relative to a ``shift`` of that block
    which keeps them finite, and the largest logit of every group.
    """

    def __init__(self, readout: Readout, tile: int, block_rows: int):
        count, columns, new = len(readout.blocks), readout.columns, readout.matrix.new_empty
        self.readout = readout
        self._logits = new(block_rows, columns)
        self._sums = new(4, count, tile)
        self._peaks = new(tile, count, columns // readout.group)
        self._entries = torch.arange(readout.group, device=readout.matrix.device) * (columns // readout.group)
        self._winners, self._slot = (
            new(tile, readout.group),
            torch.empty(tile, dtype=torch.long, device=readout.matrix.device),
        )

    def start(self, inputs: Tensor) -> None:
        """Begin a tile with the readout inputs (T, D) of its tokens."""
        self.inputs, tokens = inputs, len(inputs)
        self.total, self.weighted, self.crossed, self.shift = self._sums[:, :, :tokens]
        self.peaks = self._peaks[:tokens]
        self.winners, self.slot = self._winners[:tokens], self._slot[:tokens]
        # |z| <= |h| max|w|: where that bound is small no shift is needed, which saves a pass over the block.
        self.bounded = bool((inputs.norm(dim=1) * self.readout.largest_norm).max() < SAFE_LOGIT)
        if self.bounded:
            self.shift.zero_()

    def multiply(self, block: int, rows: slice) -> Tensor:
        """Logits (R, up to C) of the tokens ``rows`` for a vocabulary block, valid until the next call.

        Keeps the largest of every group.
        """
        buffer, matrix = self._logits[: rows.stop - rows.start], self.readout.blocks[block]
        logits = buffer[:, : len(matrix)]
        torch.mm(self.inputs[rows], matrix.T, out=logits)
        if len(matrix) < self.readout.columns:
            buffer[:, len(matrix) :] = -torch.inf
        # a group's entries are spread through the block, so that the reduction runs along contiguous memory
        peaks = self.peaks[rows, block]
        torch.amax(buffer.view(len(buffer), self.readout.group, -1), 1, out=peaks)
        if len(self.readout.blocks) == 1:  # the logits of the group that wins are at hand
            scratch = self.total[0, rows]  # written by exponentiate() next
            slot = torch.max(peaks, 1, out=(scratch, self.slot[rows])).indices.unsqueeze(1)
            torch.gather(buffer, 1, slot + self._entries, out=self.winners[rows])
        return logits

    def exponentiate(self, logits: Tensor, block: int, rows: slice, out: Tensor) -> Tensor:
        """Write e^(z - shift) of a block's logits z (R, up to C) to ``out``, and keep their sums."""
        if self.bounded:
            torch.exp(logits, out=out)
        else:
            torch.amax(self.peaks[rows, block], 1, out=self.shift[block, rows])
            torch.sub(logits, self.shift[block, rows].unsqueeze(1), out=out).exp_()
        torch.sum(out, 1, out=self.total[block, rows])
        return out

    def finish(self) -> None:
        """Combine the blocks: ``log_normaliser``, ``argmax``, largest ``peak`` and ``second``, each (T,)."""
        shift = self.shift.amax(0)
        rescale = torch.exp(self.shift - shift)
        total = (self.total * rescale).sum(0)
        self.log_normaliser = shift + total.log()
        self.rescale = rescale / total
        self._find_largest()

    def mean(self, sums: Tensor) -> Tensor:
        """The expectation (T,) of what the blocks summed, (B, T), with the weights e^(z - shift)."""
        return (sums * self.rescale).sum(0)

    def _find_largest(self) -> None:
        """Find the two largest logits: both in the group that wins, or the second in another group."""
        count, columns = len(self.readout.blocks), self.readout.columns
        groups = self.peaks.amax(1)  # (T, slots): over the blocks
        if count > 1:
            torch.max(groups, 1, out=(groups.new_empty(len(groups)), self.slot))
        slot = self.slot.unsqueeze(1)
        rivals = self.peaks.gather(2, slot.unsqueeze(1).expand(-1, count, -1)).squeeze(
            2
        )  # (T, B): that slot in every block
        block = rivals.argmax(1, keepdim=True)
        entries = block * columns + slot + self._entries
        if count > 1:
            self._recompute(entries)
        groups.scatter_(1, slot, rivals.scatter_(1, block, -torch.inf).amax(1, keepdim=True))
        self.peak, place = self.winners.max(1, keepdim=True)
        self.argmax = entries.gather(1, place).squeeze(1)
        self.second = torch.maximum(groups.amax(1), self.winners.scatter_(1, place, -torch.inf).amax(1))
        self.peak = self.peak.squeeze(1)

    def _recompute(self, entries: Tensor) -> None:
        """Logits of the winning group's ``entries`` (T, G)."""
        matrix, step = self.readout.matrix, max(1, TILE // (entries.shape[1] * self.inputs.shape[1]))
        for rows in slices(len(entries), step):  # embedding() is the fastest way to pick rows
            picked = F.embedding(entries[rows].clamp_max(len(matrix) - 1), matrix)
            torch.sum(picked.mul_(self.inputs[rows].unsqueeze(1)), 2, out=self.winners[rows])
        self.winners.masked_fill_(entries >= len(matrix), -torch.inf)

    def loss(self, target: Tensor) -> Tensor:
        """Cross-entropy in nats (T,) of the targets (T,), not below 0."""
        target_logit = F.embedding(target, self.readout.matrix).mul_(self.inputs).sum(1)
        return (self.log_normaliser - target_logit).clamp_min_(0)

    def statistics(self, target: Tensor | None) -> dict[str, Tensor]:
        """The statistics (T,) of ``token_statistics``, by name, but for those that compare exits."""
        out = {
            "max_prob": torch.exp(self.peak - self.log_normaliser),
            "max_logit": self.peak,
            "mean_logit": self.inputs @ self.readout.mean,
            "margin": self.peak - self.second,
            "entropy": (self.log_normaliser - self.mean(self.weighted)).clamp_min(0),
            "argmax": self.argmax,
        }
        if target is not None:
            out["loss"] = self.loss(target)
            out["correct_prob"] = torch.exp(-out["loss"])
        return out


Inputs = TypeVar("Inputs", Tensor, list[Tensor])
Arguments = ParamSpec("Arguments")
Returned = TypeVar("Returned")


def full_precision(
    function: Callable[Concatenate[Inputs, Arguments], Returned],
) -> Callable[Concatenate[Inputs, Arguments], Returned]:
    """The function without gradients, and in float32 also where it is called under bf16 autocast.

    Its first argument, a tensor or several, says on which device.
    """

    @functools.wraps(function)
    def wrapped(inputs: Inputs, *arguments: Arguments.args, **named: Arguments.kwargs) -> Returned:
        device = (inputs if isinstance(inputs, Tensor) else inputs[0]).device.type
        with torch.no_grad(), torch.autocast(device, enabled=False):
            return function(inputs, *arguments, **named)

    return wrapped


@full_precision
def token_statistics(
    inputs: list[Tensor], readouts: list[Readout], targets: Tensor | None = None
) -> list[dict[str, Tensor]]:
    """Statistics of the predictions softmax(W_k h_k) of one or more exits: per exit named tensors (N,).

    ``inputs`` are the readout inputs h_k (N, D) of every exit. The statistics are ``max_prob``,
    ``max_logit``, ``mean_logit``, ``margin`` (largest minus second largest logit), ``entropy`` (nats) and
    ``argmax``; with targets (N,) also ``loss`` (nats) and ``correct_prob``; for every exit but the last
    ``divergence``, the KL divergence in nats of the last exit's prediction from the exit's. ValueError
    without any token.
    """
    if not len(inputs[0]):
        raise ValueError("token_statistics needs at least one token")
    softmaxes, tile, block_rows = buffers(inputs[0], readouts)
    weight = torch.empty_like(softmaxes[0]._logits)
    out: list[dict[str, Tensor]] = [{} for _ in inputs]
    for rows in slices(len(inputs[0]), tile):
        for softmax, x in zip(softmaxes, inputs):
            softmax.start(x[rows].float())
        _run_blocks(softmaxes, weight, block_rows)
        for exit, part in enumerate(_combine(softmaxes, None if targets is None else targets[rows])):
            for name, values in part.items():
                # copied: small tensors kept from every tile would fragment the heap
                if not rows.start:
                    out[exit][name] = values.new_empty(len(inputs[0]))
                out[exit][name][rows] = values
    return out


def saturation(before: Tensor, after: Tensor) -> Tensor:
    """Cosine (N,) of hidden states (N, D) before and after a layer: near 1 where little changed (CALM)."""
    return F.cosine_similarity(before.float(), after.float(), dim=-1)


@full_precision
def predictions(inputs: Tensor, readout: Readout, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss in nats, argmax and max_prob, each (N,), of readout inputs (N, D) with targets (N,).

    They are those of ``token_statistics``, which takes longer since it computes all statistics.
    """
    losses, best = inputs.new_empty(len(inputs), dtype=torch.float32), torch.empty_like(targets)
    max_prob = torch.empty_like(losses)
    (softmax,), tile, block_rows = buffers(inputs, [readout])
    for share in slices(len(inputs), tile):
        softmax.start(inputs[share].float())
        for rows in slices(len(softmax.inputs), block_rows):
            for block in range(len(readout.blocks)):
                logits = softmax.multiply(block, rows)
                softmax.exponentiate(logits, block, rows, out=logits)
        softmax.finish()
        losses[share], best[share] = softmax.loss(targets[share]), softmax.argmax
        max_prob[share] = torch.exp(softmax.peak - softmax.log_normaliser)
    return losses, best, max_prob


def buffers(inputs: Tensor, readouts: list[Readout]) -> tuple[list[Softmax], int, int]:
    """A Softmax of every exit for the tokens of ``inputs``, the tokens of a tile, and the rows of a block."""
    columns = readouts[0].columns
    slots = len(readouts[0].blocks) * columns // readouts[0].group
    rows = max(1, BLOCK["cpu" if inputs.device.type == "cpu" else "other"] // columns)
    tile = max(1, min(len(inputs), TILE // (slots * rows) * rows or rows))
    return [Softmax(readout, tile, min(rows, tile)) for readout in readouts], tile, rows


def slices(total: int, step: int) -> list[slice]:
    """Consecutive stretches of 0 .. total-1, of ``step`` each but for the last."""
    return [slice(start, min(start + step, total)) for start in range(0, total, step)]


def _run_blocks(exits: list[Softmax], weight: Tensor, block_rows: int) -> None:
    *earlier, last = exits
    for rows in slices(len(last.inputs), block_rows):
        for block in range(len(last.readout.blocks)):
            logits_of_earlier = []
            for exit in earlier:
                logits_of_earlier.append(logits := exit.multiply(block, rows))
                weights = exit.exponentiate(logits, block, rows, out=weight[: len(logits), : logits.shape[1]])
                torch.sum(weights.mul_(logits), 1, out=exit.weighted[block, rows])
            logits = last.multiply(block, rows)
            weights = last.exponentiate(logits, block, rows, out=weight[: len(logits), : logits.shape[1]])
            for exit, exit_logits in zip(earlier, logits_of_earlier):  # sums over v of z_k e^z_last
                torch.sum(exit_logits.mul_(weights), 1, out=exit.crossed[block, rows])
            torch.sum(weights.mul_(logits), 1, out=last.weighted[block, rows])


def _combine(exits: list[Softmax], target: Tensor | None) -> list[dict[str, Tensor]]:
    for exit in exits:
        exit.finish()
    *earlier, last = exits
    out = [exit.statistics(target) for exit in exits]
    for exit, part in zip(earlier, out):  # KL(last || k) = E_last[z_last - z_k] - log Z_last + log Z_k
        expected = last.mean(last.weighted) - last.mean(exit.crossed)
        part["divergence"] = (expected - last.log_normaliser + exit.log_normaliser).clamp_min(0)
    return out
