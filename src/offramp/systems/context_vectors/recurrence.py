"""Contexts along a stream of tokens: the recurrence, one token after the other, and the parallel pass instead
of it.

The context that feeds token t is the one that token t - 1 left behind, zero at the start of a document:

    sequential    c_t = Block(c_{t-1}, x_t)     the recurrence, each step needs the one before
    parallel      c_t = Block(P_{t-1}, x_t)     all tokens at once, from given contexts P

``parallel`` is a Jacobi iteration of ``sequential``: where P is exact for a token, the result is exact for
the next, so n passes over documents of n tokens end in the recurrence, and a few do if the step forgets
quickly.

The sequential step costs what its matrix-vector products cost (benchmarks/context_vectors.py): what the
tokens contribute to all layers is computed for many tokens at once, and both matrices that meet the context
are one. Documents within one part of the stream run side by side.

Shapes: N tokens, D context width, E token width, d_i width of layer i's output, T steps, B documents side by
side.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp.systems.context_vectors.model import ContextBlock, ContextLayer, ContextVectorLM

TOGETHER = 65_536
"""Tokens of one part of the recurrence: the more, the more documents run side by side."""
PASS = 8_192
"""Tokens of one part of a parallel pass: enough for matrix products at full speed, few enough that all layers
stay small."""
STEPS = 256
"""Steps whose token terms are computed ahead."""


def previous_contexts(contexts: Tensor, begins: Tensor, wrap: bool = False) -> Tensor:
    """The context (N, D) before every token, given the one (N, D) after it; zero where a document ``begins``
    (N,).

    ``wrap`` is the stream of the report instead: a ring without boundaries between documents, in which the
    last context comes before the first token.
    """
    shifted = contexts.roll(1, dims=0)
    return shifted if wrap else shifted.masked_fill_(begins.unsqueeze(1), 0.0)


@torch.no_grad()
def parallel(
    model: ContextVectorLM, tokens: Tensor, previous: Tensor, together: int = PASS
) -> Iterator[list[Tensor]]:
    """Outputs (n, d_i) of all layers for tokens (N,) whose contexts before them are ``previous`` (N, D), part
    by part."""
    for x, context in zip(tokens.split(together), previous.split(together)):
        yield model.context_block(context, model.embed(x))


def settle(model: ContextVectorLM, tokens: Tensor, begins: Tensor, contexts: Tensor, passes: int) -> Tensor:
    """Contexts (N, D) after ``passes`` parallel passes from ``contexts``, each fed by the one before."""
    for _ in range(passes):
        before = previous_contexts(contexts, begins)
        contexts = torch.cat([outputs[-1] for outputs in parallel(model, tokens, before)])
    return contexts


@torch.no_grad()
def sequential(
    model: ContextVectorLM,
    tokens: Tensor,
    begins: Tensor,
    together: int = TOGETHER,
    first: Tensor | None = None,
) -> Iterator[list[Tensor]]:
    """Outputs (n, d_i) of all layers for tokens (N,), part by part in the order of the stream, by the
    recurrence.

    ``first`` (D,) is the context before a stream that does not begin a document; zero where None.
    """
    recurrence = Recurrence(model.context_block)
    carried = torch.zeros(model.config.context_width) if first is None else first
    for part, starts in zip(tokens.split(together), begins.split(together)):
        rows = _Fragments(starts)
        context = torch.zeros(len(rows.lengths), model.config.context_width)
        if not starts[0]:
            context[rows.row_of_first] = carried
        outputs = [torch.empty(len(part), width) for width in model.config.context_widths]
        for begin in range(0, rows.longest, STEPS):
            places = rows.places(begin, min(begin + STEPS, rows.longest))
            inside = places >= 0
            computed = recurrence.run(context[: places.shape[1]], model.embed(part[places.clamp_min(0)]))
            for output, values in zip(outputs, computed):
                output[places[inside]] = values[inside]
            context = computed[-1][-1]
        carried = outputs[-1][-1].clone()
        yield outputs


class _Fragments:
    """Pieces of documents within one part as rows, the longest first, so that those still running are always
    the first ones."""

    def __init__(self, begins: Tensor):
        first = torch.cat((begins.new_ones(1), begins[1:])).nonzero().flatten()
        lengths = torch.diff(first, append=first.new_tensor([len(begins)]))
        order = lengths.argsort(descending=True, stable=True)
        self.first, self.lengths = first[order], lengths[order]
        self.row_of_first = int((order == 0).nonzero())
        """The row that goes on where the part before ended."""
        self.longest = int(lengths.max())

    def places(self, begin: int, end: int) -> Tensor:
        """Where in the part the steps from ``begin`` to ``end`` of all rows that still run are, (T, B); -1
        past their end."""
        running = int((self.lengths > begin).sum())
        steps = torch.arange(begin, end).unsqueeze(1)
        return (self.first[:running] + steps).masked_fill(steps >= self.lengths[:running], -1)


class Recurrence:
    """One step of a ContextBlock after the other."""

    def __init__(self, block: ContextBlock):
        self.steps = [_FusedLayer(cast(ContextLayer, layer)) for layer in block.layers]

    @torch.inference_mode()  # a sixth faster than without gradients alone: bookkeeping counts at these sizes
    def run(self, first: Tensor, x: Tensor) -> list[Tensor]:
        """Outputs (T, B, d_i) of all layers for tokens x (T, B, E), from the contexts (B, D) before them."""
        terms = [step.token_terms(x).unbind(0) for step in self.steps]
        buffers = [x.new_empty(x.shape[1], step.matrix.shape[1]) for step in self.steps]
        outputs: list[list[Tensor]] = [[] for _ in self.steps]
        context = first
        for of_step in zip(*terms):
            for step, term, buffer, of_layer in zip(self.steps, of_step, buffers, outputs):
                context = step(context, term, buffer)
                of_layer.append(context)
        return [torch.stack(of_layer) for of_layer in outputs]


class _FusedLayer:
    """A ContextLayer whose two matrices on the context are one, [W_c ; R], with what the token adds given."""

    def __init__(self, layer: ContextLayer):
        weight = layer.transform.weight.detach()
        on_context = weight[:, : layer.context_in]
        self.token_weight = weight[:, layer.context_in :] if layer.token_width else None
        self.bias, self.width = layer.transform.bias.detach(), len(weight)
        self.projects = not isinstance(layer.residual, nn.Identity)
        if self.projects:
            residual = cast(nn.Linear, layer.residual)
            on_context = torch.cat((on_context, residual.weight.detach()))
            self.residual_bias = residual.bias.detach()
        self.matrix = on_context.T.contiguous()
        self.norm = (self.width,), layer.norm.weight.detach(), layer.norm.bias.detach(), layer.norm.eps

    def token_terms(self, x: Tensor) -> Tensor:
        """What tokens (T, B, E) add to the product with the context: (T, B, d_i) or (T, B, 2 d_i)."""
        term = (
            self.bias.expand(*x.shape[:2], -1)
            if self.token_weight is None
            else F.linear(x, self.token_weight, self.bias)
        )
        return (
            torch.cat((term, self.residual_bias.expand(*x.shape[:2], -1)), dim=-1) if self.projects else term
        )

    def __call__(self, context: Tensor, term: Tensor, buffer: Tensor) -> Tensor:
        """The next layer's context (B, d_i); ``buffer`` is overwritten."""
        torch.addmm(term, context, self.matrix, out=buffer)
        change = buffer
        if self.projects:
            change, context = buffer.split(self.width, dim=1)
        return torch.layer_norm(change.relu_().add_(context), *self.norm)
