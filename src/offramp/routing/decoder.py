"""Decoding with early exit: rows of a batch leave at different depths in the same step.

A token that left after block k costs nothing more until a later token of its row enters a block beyond k.
Only then, and for all that are waiting at once, what stands for them there is made: keys and values from
their last states (``propagate``), or their true ones by running them through the block after all
(``recompute``); with ``drop`` nothing. Later tokens see what they would have seen had it been made at once,
so exits and predictions are those of one parallel pass (``routing.executor``) over the same text.

Shapes: B rows, S places a row has, N tokens of one call, D width, H heads, G heads of keys and values, E
width of a head. A token's number is row * S + position.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from offramp.errors import UserError
from offramp.models.blockwise import Blockwise
from offramp.nn.layers import Layer, StackedKeysValues, attend
from offramp.routing.executor import Arrivals, Policy, Work


@dataclass
class Fed:
    """What became of the N tokens of one call, in their order."""

    exit: Tensor
    """(N,)"""
    states: Tensor
    """(N, D) what their exit reads out.

    The state after the block they left after, or what the exit's own layer made of it.
    """
    confidence: Tensor
    """(N,) of the exit taken; NaN at full depth."""
    argmax: Tensor | None
    """(N,) where the policy reads out every token it decides about, else None; at full depth -1."""


class Decoder:
    """The tokens of B growing rows, and how deep each of them is known."""

    def __init__(self, model: Blockwise, rows: int, kv: str = "propagate", space: int | None = None):
        """``space``: the most tokens a row may hold; the model's window by default."""
        self.model, self.kv = model.eval(), kv
        self.space, device = space or model.config.window, model.cos.device
        if self.space > model.config.window:
            raise UserError(
                f"{self.space} tokens, those of the prompt and all new ones but the last, do not fit the "
                f"model's window of {model.config.window}; shorten the prompt or ask for fewer new tokens"
            )
        self.lengths = torch.zeros(rows, dtype=torch.long, device=device)
        """(B,) tokens of every row."""
        self.work = Work()
        self._depth = torch.zeros(rows * self.space, dtype=torch.long, device=device)
        """Blocks in which a token's keys and values stand in the cache (``drop``: that it ran)."""
        self._states = model.embed(torch.zeros(1, dtype=torch.long, device=device)).new_zeros(
            rows * self.space, model.config.width
        )
        """The last state of every token that left."""
        self._caches: list[tuple[Tensor, Tensor] | None] = [None] * sum(model.config.block_layers)
        self._first_layer = [
            sum(model.config.block_layers[:block]) for block in range(model.config.num_blocks)
        ]
        self._stacked = [
            StackedKeysValues(layers) if kv == "propagate" and block else None
            for block, layers in enumerate(model.layers)
        ]
        self._exit_caches: list[tuple[Tensor, Tensor] | None] = [None] * (model.config.num_blocks - 1)
        """Of the exits' own layers."""
        self._exit_known = torch.zeros(
            model.config.num_blocks - 1, rows * self.space, dtype=torch.bool, device=device
        )
        """Whether a token's keys and values stand there."""
        self._left = False
        """Whether any token has left before the last block."""

    @torch.no_grad()
    def feed(self, rows: Tensor, tokens: Tensor, policy: Policy | None, prompt: Tensor | None = None) -> Fed:
        """Append tokens (N,) to ``rows`` (N,), which ascend, and route them.

        Without a policy they go to full depth. ``prompt`` (B,) are the lengths from which a policy counts
        positions. UserError where a row would grow beyond the model's window.
        """
        counts = torch.bincount(rows, minlength=len(self.lengths))
        start = counts.cumsum(0) - counts
        position = self.lengths[rows] + torch.arange(len(rows), device=rows.device) - start[rows]
        self.lengths = self.lengths + counts
        if int(self.lengths.max()) > self.space:
            raise UserError(
                f"a sequence of {int(self.lengths.max())} tokens does not fit the {self.space} places of a "
                "row; shorten the prompt or ask for fewer new tokens"
            )
        number = rows * self.space + position
        self._depth[number] = 0
        self._exit_known[:, number] = False
        self.work.tokens += len(rows)
        since = position if prompt is None else (position - prompt[rows]).clamp_min(0)
        return self._route(number, self.model.embed(tokens, position), 0, policy, since)

    @torch.no_grad()
    def deepen(self, number: Tensor) -> Tensor:
        """Take tokens (N,) that all left after one block on to full depth; their states (N, D) there."""
        return self._route(number, self._states[number], int(self._depth[number[0]])).states

    def numbers(self, row: int, start: int) -> Tensor:
        """Numbers of a row's tokens from position ``start`` on."""
        return torch.arange(
            row * self.space + start, row * self.space + int(self.lengths[row]), device=self.lengths.device
        )

    def forget(self, lengths: Tensor) -> None:
        """Cut every row back to ``lengths`` (B,)."""
        self.lengths = lengths.clone()

    @torch.no_grad()
    def logits(self, exit: Tensor, states: Tensor) -> Tensor:
        """Logits (N, V) of what is read out, (N, D), at the exits (N,).

        Exits that share a matrix share the product.
        """
        counts = torch.bincount(exit, minlength=self.model.config.num_blocks).tolist()
        taken = [number for number, count in enumerate(counts) if count]
        for number in taken:
            self.work.count_readouts(number, counts[number])
        if len(taken) == 1:  # as in every step of one row
            inputs = self.model.readout_input(taken[0], states).to(states.dtype)
            return F.linear(inputs, self.model.readout_matrix(taken[0]))
        order = exit.argsort(stable=True).split([counts[number] for number in taken])
        inputs = torch.empty_like(states)
        matrices: dict[int, tuple[Tensor, list[Tensor]]] = {}
        for number, rows in zip(taken, order):
            inputs[rows] = self.model.readout_input(number, states[rows]).to(inputs.dtype)
            matrix = self.model.readout_matrix(number)
            matrices.setdefault(matrix.data_ptr(), (matrix, []))[1].append(rows)
        if len(matrices) == 1:
            return inputs @ next(iter(matrices.values()))[0].T
        out = states.new_empty(len(states), self.model.config.vocab_size)
        for matrix, parts in matrices.values():
            rows = torch.cat(parts)
            out[rows] = inputs[rows] @ matrix.T
        return out

    def _route(
        self, number: Tensor, x: Tensor, first: int, policy: Policy | None = None, since: Tensor | None = None
    ) -> Fed:
        """Run tokens (N,) of states x (N, D) from block ``first`` on; ``since`` as in ``Arrivals``."""
        last, size = self.model.config.num_blocks - 1, len(number)
        since = number % self.space if since is None else since
        exit = number.new_full((size,), last)
        states, confidence = x.clone(), torch.full((size,), torch.nan, device=x.device)
        argmax = None
        active, numbers, view = torch.arange(size, device=number.device), number, None
        for block in range(first, last + 1):
            entered = x
            watch = block < last and policy is not None and policy.reads_before
            x, before, view = self._run_block(block, numbers, x, watch, view)
            if block == last or policy is None or block < policy.first:
                continue
            read = self._exit_states(block, numbers, x, view) if policy.reads_out else None
            decision = policy.decide(
                Arrivals(
                    exit=block,
                    states=x,
                    read=read,
                    before=before,
                    index=active,
                    targets=None,
                    position=numbers % self.space,
                    since=since[active],
                )
            )
            self.work.decided_tokens += len(active)
            self.work.count_readouts(block, len(active) if policy.reads_out else 0)
            if decision.argmax is not None:
                argmax = number.new_full((size,), -1) if argmax is None else argmax
            who = decision.leavers()
            if who is None:
                continue
            leaves, stays = who
            self._left = True
            leaving = active[leaves]
            exit[leaving] = block
            states[leaving] = (
                self._exit_states(block, numbers[leaves], x[leaves], view) if read is None else read[leaves]
            )
            if decision.confidence is not None:
                confidence[leaving] = decision.confidence[leaves]
            if argmax is not None and decision.argmax is not None:
                argmax[leaving] = decision.argmax[leaves]
            stands = entered if self.model.config.exited_state == "input" and self.kv == "propagate" else x
            self._states[number[leaving]] = stands[leaves]
            active, numbers, x = active[stays], numbers[stays], x[stays]
            if not len(active):
                break
        states[active] = x
        return Fed(exit, states, confidence, argmax)

    def _run_block(
        self, block: int, number: Tensor, x: Tensor, watch: bool, view: _View | None
    ) -> tuple[Tensor, Tensor | None, _View]:
        """States (N, D) of the tokens ``number`` after a block, and, if asked, before its last layer."""
        self._depth[number] = block + 1
        waiting = self._waiting(block, number)
        running, order_back = number, None
        if self.kv == "recompute" and len(waiting):
            running, order = torch.cat([number, waiting]).sort()
            x = torch.cat([x, self._states[waiting]])[order]
            order_back = order.argsort()
        if view is None or view.number is not running or self.kv == "drop":
            view = _View(self, block, running)
        layers, offset, before = self.model.layers[block], self._first_layer[block], None
        if len(waiting):
            self._depth[waiting] = block + 1
        stacked = self._stacked[block]
        if stacked is not None and len(waiting):
            position = waiting % self.space
            projected = stacked(self._states[waiting], self.model.cos[position], self.model.sin[position])
            for layer_number, (key, value) in enumerate(projected, start=offset):
                self._remember(layer_number, waiting, key, value)
        for place, layer in enumerate(layers):
            if watch and place == len(layers) - 1:
                before = x
            source = layer.attention_input(x)
            query = layer.queries(source, view.cos, view.sin)
            cache = self._remember(offset + place, running, *layer.keys_values(source, view.cos, view.sin))
            x = layer.finish(x, view.attend(query, *cache))
            filled = len(running) + (len(waiting) if self.kv == "propagate" else 0)
            self.work.count_layer(offset + place, len(running), filled, view.pairs)
        if exit_layer := self._exit_layer(block):
            keys_values = exit_layer.keys_values(exit_layer.attention_input(x), view.cos, view.sin)
            self._remember_at_exit(block, running, *keys_values)
            self.work.count_exit_layer(block, 0, len(running), 0)
        if order_back is None:
            return x, before, view
        entering, others = order_back[: len(number)], order_back[len(number) :]
        self._states[waiting] = x[others]
        return x[entering], before[entering] if before is not None else None, view

    def _exit_layer(self, block: int) -> Layer | None:
        return self.model.exit_layer(block) if block < self.model.config.num_blocks - 1 else None

    def _exit_states(self, exit: int, number: Tensor, x: Tensor, view: _View) -> Tensor:
        """What an exit reads out, (N, D), of tokens ``number`` (N,) that ran its block.

        x (N, D) are their states there.
        """
        layer = self._exit_layer(exit)
        if layer is None:
            return x
        if view.number is not number:
            view = _View(self, exit, number)
        waiting = number[:0]
        if (
            self.kv == "propagate"
            and self._left
            and len(waiting := self._before(number, ~self._exit_known[exit]))
        ):
            place = waiting % self.space
            source = layer.attention_input(self._states[waiting])
            self._remember_at_exit(
                exit, waiting, *layer.keys_values(source, self.model.cos[place], self.model.sin[place])
            )
        self.work.count_exit_layer(exit, len(number), len(waiting), view.pairs)
        query = layer.queries(layer.attention_input(x), view.cos, view.sin)
        cache = self._exit_caches[exit]
        assert cache is not None, "every token that ran the block has its keys and values there"
        return layer.finish(x, view.attend(query, *cache))

    def _waiting(self, block: int, number: Tensor) -> Tensor:
        """Numbers of the tokens that left before this block and that later tokens, entering it, will see."""
        if self.kv == "drop" or block == 0 or not self._left:
            return number[:0]
        return self._before(number, self._depth <= block)

    def _before(self, number: Tensor, wanted: Tensor) -> Tensor:
        """Numbers of the tokens where ``wanted`` (B * S,) is true.

        Only those before the last token of ``number`` (N,) in their row.
        """
        last = torch.zeros_like(self.lengths).scatter_reduce_(
            0, number // self.space, number % self.space, "amax"
        )
        end = int(last.max())
        matches = (
            wanted.view(-1, self.space)[:, :end]
            & (torch.arange(end, device=number.device) < last.unsqueeze(1))
        ).nonzero()
        return matches[:, 0] * self.space + matches[:, 1]

    def _remember(self, layer: int, number: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """The layer's keys and values, those of the tokens ``number`` (N,) among them from now on."""
        self._caches[layer] = cache = self._written(self._caches[layer], number, key, value)
        return cache

    def _remember_at_exit(self, exit: int, number: Tensor, key: Tensor, value: Tensor) -> None:
        self._exit_caches[exit] = self._written(self._exit_caches[exit], number, key, value)
        self._exit_known[exit, number] = True

    def _written(
        self, cache: tuple[Tensor, Tensor] | None, number: Tensor, key: Tensor, value: Tensor
    ) -> tuple[Tensor, Tensor]:
        places = len(self._depth)
        keys, values = cache or (
            key.new_zeros(places, *key.shape[1:]),
            value.new_zeros(places, *value.shape[1:]),
        )
        keys.index_copy_(0, number, key)
        values.index_copy_(0, number, value)
        return keys, values


class _View:
    """How queries of some rows meet the cache: which rows, how far, and what each query may see."""

    def __init__(self, decoder: Decoder, block: int, number: Tensor):
        space, rows, self.number = decoder.space, len(decoder.lengths), number
        row, position = number // space, number % space
        self.cos, self.sin = decoder.model.cos[position], decoder.model.sin[position]
        counts = torch.bincount(row, minlength=rows)
        present = counts > 0
        sizes = torch.stack((counts.max(), position.max() + 1, position.min() + 1, present.sum()))
        self.width, self.end, shortest, num_present = sizes.tolist()  # at once: reading makes a device wait
        self.shape = (rows, space)
        self.rows = None if num_present == rows else present.nonzero().squeeze(1)
        num_rows = rows if self.rows is None else len(self.rows)
        self.pairs = num_rows * self.width * self.end
        start = counts.cumsum(0) - counts
        row_of = present.cumsum(0) - 1
        self.slot = row_of[row] * self.width + torch.arange(len(number), device=number.device) - start[row]
        self.dense = len(number) == num_rows * self.width
        self.visible, self.causal = None, self.dense and self.width == self.end and decoder.kv != "drop"
        one_each = self.width == 1 and shortest == self.end  # and all rows of the same length
        if decoder.kv == "drop" or not (self.causal or one_each):
            reach = position.new_zeros(num_rows * self.width).index_copy_(0, self.slot, position)
            visible = torch.arange(self.end, device=number.device) <= reach.unsqueeze(-1)
            visible = visible.view(num_rows, 1, self.width, self.end)
            if decoder.kv == "drop":
                known = self._rows(decoder._depth) > block
                visible = visible & known.view(num_rows, 1, 1, self.end)
            self.visible = visible

    def _rows(self, cache: Tensor) -> Tensor:
        """The rows of a cache (B * S, ...) up to the last token any query sees.

        It is cut first, since picking rows copies them.
        """
        rows = cache.view(*self.shape, *cache.shape[1:])[:, : self.end]
        return rows if self.rows is None else rows.index_select(0, self.rows)

    def attend(self, query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """What the queries (N, H, E) read from the cache, each of it (B * S, G, E); (N, H, E)."""
        num_rows = self.shape[0] if self.rows is None else len(self.rows)
        if not self.dense:
            query = query.new_zeros(num_rows * self.width, *query.shape[1:]).index_copy_(0, self.slot, query)
        mask: dict[str, Any] = (
            {"is_causal": self.causal} if self.visible is None else {"attn_mask": self.visible}
        )
        keys, values = self._rows(keys), self._rows(values)
        out = attend(query.unflatten(0, (num_rows, self.width)), keys, values, **mask).flatten(0, 1)
        return out if self.dense else out.index_select(0, self.slot)
