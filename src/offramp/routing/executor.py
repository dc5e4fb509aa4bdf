"""Early exit that really skips: tokens that left are no longer computed, except for keys and values others need.

One block-by-block pass over whole sequences. After block k the tokens the policy lets go are read out and
removed; in later blocks queries, attention rows and feed-forward run for the remaining tokens only, and a token
that left stands in as its last state, from which every later layer projects its keys and values (state
propagation, CALM, arXiv 2207.07061). A token's exit thus depends on its own state and on earlier tokens only, and
the pass gives the same exits and losses as decoding token by token.

Shapes: B sequences, T positions, M = B * T tokens in all, N tokens still in, D width, H heads, E = D / H.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from offramp.models.native import BlockwiseLM
from offramp.nn.layers import TransformerLayer, attend
from offramp.states.statistics import Readout, predictions


@dataclass
class Arrivals:
    """The N tokens that arrive at an exit, in the order of the batch."""

    exit: int
    states: Tensor
    """(N, D)"""
    before: Tensor | None
    """(N, D) before the block's last layer, for a policy that reads it."""
    index: Tensor
    """(N,) their numbers within the batch (B * T)."""
    targets: Tensor
    """(N,) for the loss of those that leave; no decision may look at it."""


@dataclass
class Decision:
    """What a policy says of the N tokens that arrive at an exit."""

    leaves: Tensor
    """bool (N,)"""
    confidence: Tensor | None = None
    """(N,)"""
    loss: Tensor | None = None
    """(N,) nats, where the policy had to read out every arriving token anyway; then also ``argmax``."""
    argmax: Tensor | None = None


class Policy(Protocol):
    """Who may leave."""

    reads_out: bool
    """Whether a decision costs a readout of every arriving token."""
    reads_before: bool
    """Whether a decision looks at the states before the block's last layer."""
    flops_per_token: int
    """Floating-point operations of a decision, without the readout."""

    def decide(self, arrivals: Arrivals) -> Decision: ...


@dataclass
class Work:
    """What was executed, counted where it happens."""

    layer_tokens: list[int] = field(default_factory=list)
    """Per layer: tokens that ran queries, output projection and feed-forward."""
    key_value_tokens: list[int] = field(default_factory=list)
    """Per layer: tokens whose keys and values were projected."""
    attention_pairs: int = 0
    """Query-key pairs scored, padding included."""
    readout_tokens: int = 0
    decided_tokens: int = 0
    """Tokens about which an exit policy decided."""
    tokens: int = 0

    def count_layer(self, layer: int, tokens: int, key_values: int, pairs: int) -> None:
        while len(self.layer_tokens) <= layer:
            self.layer_tokens.append(0)
            self.key_value_tokens.append(0)
        self.layer_tokens[layer] += tokens
        self.key_value_tokens[layer] += key_values
        self.attention_pairs += pairs


@dataclass
class Routed:
    """Per token of a batch, each (B, T)."""

    exit: Tensor
    loss: Tensor
    argmax: Tensor
    confidence: Tensor
    """Of the exit taken; NaN at full depth, where nothing is decided."""


class Executor:
    """Runs a block-wise model under an exit policy and counts what it executes."""

    def __init__(self, model: BlockwiseLM):
        self.model = model.eval()
        self.readouts = [Readout(model.readout_matrix(exit)) for exit in range(model.config.num_blocks)]

    @torch.no_grad()
    def run(self, tokens: Tensor, targets: Tensor, policy: Policy | None, work: Work | None = None) -> Routed:
        """Route tokens (B, T). With no policy every token goes to full depth and nothing is checked on the way."""
        model, work = self.model, work or Work()
        shape, last = tokens.shape, model.config.num_blocks - 1
        wanted = targets.flatten()
        x = model.embed(tokens).flatten(0, 1)
        active = torch.arange(len(x), device=x.device)
        exit_of = torch.full_like(wanted, last)
        loss, confidence = (torch.full(wanted.shape, torch.nan, device=x.device) for _ in range(2))
        argmax = torch.zeros_like(wanted)
        work.tokens += len(x)
        layer_number = 0
        for block, layers in enumerate(model.blocks):
            entered = x[active] if model.config.exited_state == "input" else None
            remaining = None if len(active) == len(x) else _Remaining(active, shape, model.cos, model.sin)
            before = None
            for layer in layers:
                if layer is layers[-1] and block < last and policy is not None and policy.reads_before:
                    before = x[active]
                x = self._layer(layer, layer_number, x, remaining, shape, work)
                layer_number += 1
            if block == last or policy is None:
                continue
            states = x[active]
            decision = policy.decide(Arrivals(block, states, before, active, wanted[active]))
            work.decided_tokens += len(active)
            work.readout_tokens += len(active) if policy.reads_out else 0
            gone = active[decision.leaves]
            exit_of[gone] = block
            if decision.confidence is not None:
                confidence[gone] = decision.confidence[decision.leaves]
            if decision.loss is not None:
                loss[gone], argmax[gone] = decision.loss[decision.leaves], decision.argmax[decision.leaves]
            else:
                loss[gone], argmax[gone] = self._read_out(block, states[decision.leaves], wanted[gone], work)
            if entered is not None:
                x[gone] = entered[decision.leaves]
            active = active[~decision.leaves]
            if len(active) == 0:
                break
        if len(active):
            loss[active], argmax[active] = self._read_out(last, x[active], wanted[active], work)
        return Routed(*(part.view(shape) for part in (exit_of, loss, argmax, confidence)))

    def _read_out(self, exit: int, states: Tensor, targets: Tensor, work: Work) -> tuple[Tensor, Tensor]:
        work.readout_tokens += len(states)
        return predictions(self.model.readout_input(exit, states), self.readouts[exit], targets)[:2]

    def _layer(self, layer: TransformerLayer, number: int, x: Tensor, remaining: _Remaining | None, shape: torch.Size,
               work: Work) -> Tensor:
        """States (M, D) after a layer that runs for the ``remaining`` tokens only; for all where that is None."""
        batch, length = shape
        cos, sin = self.model.cos[:length], self.model.sin[:length]
        if remaining is None:
            work.count_layer(number, len(x), len(x), batch * length * length)
            return layer(x.view(batch, length, -1), cos, sin).flatten(0, 1)
        source, active = layer.attention_input(x), remaining.index
        keys, values = layer.keys_values(source.view(batch, length, -1), cos, sin)
        queries = layer.queries(source.index_select(0, active), remaining.cos, remaining.sin)
        attended = remaining.attend(queries, keys, values)
        work.count_layer(number, len(active), len(x), remaining.pairs)
        return x.index_copy_(0, active, layer.finish(x.index_select(0, active), attended))


class _Remaining:
    """The tokens a block still computes, and where their queries stand.

    Queries are padded to the row that keeps most of them, for the score computation only.
    """

    def __init__(self, index: Tensor, shape: torch.Size, cos: Tensor, sin: Tensor):
        """``index`` (N,) numbers tokens within the batch (B * T), in order; cos and sin (T, E / 2)."""
        batch, length = shape
        row, position = index // length, index % length
        counts = torch.bincount(row, minlength=batch)
        self.index, self.cos, self.sin = index, cos[position], sin[position]
        self.batch, self.width = batch, int(counts.max())
        self.pairs = batch * self.width * length
        """Query-key pairs a layer scores."""
        self.slot = row * self.width + torch.arange(len(row), device=row.device) - (counts.cumsum(0) - counts)[row]
        reach = position.new_zeros(batch * self.width).index_copy_(0, self.slot, position)
        visible = torch.arange(length, device=row.device) <= reach.unsqueeze(-1)
        self.visible = visible.view(batch, 1, self.width, length)

    def attend(self, queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """Causal attention of the queries (N, H, E) over keys and values (B, T, H, E) of all tokens; (N, H, E)."""
        padded = queries.new_zeros(self.batch * self.width, *queries.shape[1:]).index_copy_(0, self.slot, queries)
        out = attend(padded.unflatten(0, (self.batch, self.width)), keys, values, attn_mask=self.visible)
        return out.flatten(0, 1).index_select(0, self.slot)
