"""Early exit that really skips: tokens that left are computed no more, save keys and values others need.

One block-by-block pass over whole sequences. After block k the tokens the policy lets go are read out and
removed; in later blocks queries, attention rows and feed-forward run for the remaining tokens only. What
later tokens find in place of one that left is ``kv``'s to say:

* ``propagate``: keys and values projected from its last state, in every later layer (CALM, arXiv 2207.07061);
* ``recompute``: its true ones: it is carried through a later block after all when a later token of its
  sequence enters that block (EE-LLM, arXiv 2312.04916), which changes what is computed, not where it was read
  out;
* ``drop``: nothing; in later layers nobody attends to it.

A token's exit thus depends on its own state and on earlier tokens only, and the pass gives the same exits and
losses as decoding token by token.

Shapes: B sequences, T positions, M = B * T tokens in all, N tokens still in, D width, H heads, G heads of
keys and values, E width of a head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from offramp.machine.device import autocast, require_precision
from offramp.models.blockwise import Blockwise
from offramp.nn.layers import Layer, attend
from offramp.states.statistics import Readout, predictions


@dataclass
class Arrivals:
    """The N tokens that arrive at an exit, in the order of the batch."""

    exit: int
    states: Tensor
    """(N, D) after the block"""
    read: Tensor | None
    """(N, D) what the exit reads out: ``states``, or what the exit's own layer makes of them.

    None where the policy reads nothing.
    """
    before: Tensor | None
    """(N, D) before the block's last layer, for a policy that reads it."""
    index: Tensor
    """(N,) their numbers within the batch (B * T)."""
    targets: Tensor | None
    """(N,) for the loss of those that leave; no decision may look at it. None while generating."""
    position: Tensor
    """(N,) in their sequences."""
    since: Tensor
    """(N,) positions as CALM's decay counts them: from the end of the prompt while generating, 0 within it.
    """


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

    def leavers(self) -> tuple[Tensor, Tensor] | None:
        """Places among the N tokens of those that leave and of those that stay; None where nobody leaves.

        It is the one moment at which a pass waits for its device to learn what was decided.
        """
        count = int(self.leaves.sum())
        if not count:
            return None
        order = (~self.leaves).int().argsort(stable=True)
        return order[:count], order[count:]


class Policy(ABC):
    """Who may leave.

    Unless a policy says otherwise, asking it costs nothing and it is asked at every exit but the last.
    """

    reads_out: bool = False
    """Whether a decision costs a readout of every arriving token."""
    reads_before: bool = False
    """Whether a decision looks at the states before the block's last layer."""
    flops_per_token: int = 0
    """Floating-point operations of a decision, without the readout."""
    first: int = 0
    """The first exit at which it is asked."""

    @abstractmethod
    def decide(self, arrivals: Arrivals) -> Decision:
        """What becomes of the tokens that arrive at an exit; in their order."""


@dataclass
class Work:
    """What was executed, counted where it happens."""

    layer_tokens: list[int] = field(default_factory=list)
    """Per layer: tokens that ran queries, output projection and feed-forward."""
    key_value_tokens: list[int] = field(default_factory=list)
    """Per layer: tokens whose keys and values were projected."""
    attention_pairs: int = 0
    """Query-key pairs scored, padding included."""
    readouts: list[int] = field(default_factory=list)
    """Per exit: tokens read out there."""
    decided_tokens: int = 0
    """Tokens about which an exit policy decided."""
    tokens: int = 0
    exit_layer_tokens: list[int] = field(default_factory=list)
    """Per exit: what ``layer_tokens`` is, of the layer that is the exit's own; empty without such layers."""
    exit_key_value_tokens: list[int] = field(default_factory=list)

    def count_layer(self, layer: int, tokens: int, key_values: int, pairs: int) -> None:
        """Count tokens that ran a layer, keys and values projected in it, and pairs scored."""
        _add(self.layer_tokens, layer, tokens)
        _add(self.key_value_tokens, layer, key_values)
        self.attention_pairs += pairs

    def count_exit_layer(self, exit: int, tokens: int, key_values: int, pairs: int) -> None:
        """The same of the layer that is the exit's own."""
        _add(self.exit_layer_tokens, exit, tokens)
        _add(self.exit_key_value_tokens, exit, key_values)
        self.attention_pairs += pairs

    def count_readouts(self, exit: int, tokens: int) -> None:
        """Count tokens that were read out at an exit."""
        _add(self.readouts, exit, tokens)


def _add(counts: list[int], place: int, more: int) -> None:
    counts += [0] * (place + 1 - len(counts))
    counts[place] += more


@dataclass
class Routed:
    """Per token of a batch, each (B, T)."""

    exit: Tensor
    loss: Tensor
    argmax: Tensor
    confidence: Tensor
    """Of the exit taken; NaN at full depth, where nothing is decided."""


class Executor:
    """Runs a block-wise model under an exit policy and counts what it executes.

    ``kv`` says what later tokens find in place of those that left (see above). ``precision`` (fp32 or bf16)
    is that of the layers; decisions and readouts are float32. UserError where the model's device has no bf16.
    """

    def __init__(self, model: Blockwise, kv: str = "propagate", precision: str = "fp32"):
        require_precision(model.cos.device, precision, "collect.precision")
        self.model, self.kv, self.precision = model.eval(), kv, precision
        self.readouts = [Readout(model.readout_matrix(exit)) for exit in range(model.config.num_blocks)]

    @property
    def device(self) -> torch.device:
        """Where the model is and tokens must be."""
        return self.model.cos.device

    @torch.no_grad()
    def run(
        self,
        tokens: Tensor,
        targets: Tensor,
        policy: Policy | None,
        work: Work | None = None,
        lengths: Tensor | None = None,
        after_first: Tensor | None = None,
    ) -> Routed:
        """Route tokens (B, T). With no policy every token goes to full depth and none is asked.

        Where sequences are shorter than T, ``lengths`` (B,) says so; what stands behind them is not routed,
        and its loss is NaN. ``work`` counts what is executed. ``after_first`` (B * T, D) is what
        ``first_block`` gave for the same tokens: it is taken, and counted as if it were executed here. It
        goes with no ``lengths``, and with no policy that reads the states before a block's last layer.
        """
        model, work = self.model, work or Work()
        shape, last = tokens.shape, model.config.num_blocks - 1
        wanted = targets.flatten()
        assert after_first is None or (lengths is None and not (policy and policy.reads_before))
        x = model.embed(tokens).flatten(0, 1)
        active = torch.arange(len(x), device=x.device)
        if lengths is not None:
            active = active[(active % shape[1] < lengths.repeat_interleave(shape[1]))]
        exit_of = torch.full_like(wanted, last)
        loss, confidence = (torch.full(wanted.shape, torch.nan, device=x.device) for _ in range(2))
        argmax = torch.zeros_like(wanted)
        work.tokens += len(active)
        number = 0
        for block, layers in enumerate(model.layers):
            everyone = len(active) == len(x)
            entered = None
            if model.config.exited_state == "input":
                entered = x if everyone else x[active]  # where everyone runs, layers write to new memory
            field = None if everyone else _Field(self.kv, active, shape, model.cos, model.sin)
            before = None
            with autocast(x.device, self.precision):
                for place, layer in enumerate(layers):
                    if (
                        place == len(layers) - 1
                        and block < last
                        and policy is not None
                        and policy.reads_before
                    ):
                        before = x if everyone else x[active]
                    if field is None:
                        work.count_layer(number, len(x), len(x), len(x) * shape[1])
                        if block or after_first is None:
                            x = self._whole_layer(layer, x, shape)
                    else:
                        work.count_layer(number, len(field.running), field.key_values, field.pairs)
                        x = field.run(layer, x)
                    number += 1
            if after_first is not None and not block:
                x = after_first.clone()  # later layers write to it
            if block == last or policy is None or block < policy.first:
                continue
            states = x if everyone else x[active]
            position = active % shape[1]
            read = None
            if policy.reads_out:
                has_layer = model.exit_layer(block) is not None
                read = self._exit_states(block, x, active, active, shape, work) if has_layer else states
            decision = policy.decide(
                Arrivals(
                    exit=block,
                    states=states,
                    read=read,
                    before=before,
                    index=active,
                    targets=wanted[active],
                    position=position,
                    since=position,
                )
            )
            work.decided_tokens += len(active)
            work.count_readouts(block, len(active) if policy.reads_out else 0)
            who = decision.leavers()
            if who is None:
                continue
            leaves, stays = who
            leaving = active[leaves]
            exit_of[leaving] = block
            if decision.confidence is not None:
                confidence[leaving] = decision.confidence[leaves]
            if decision.loss is not None and decision.argmax is not None:
                loss[leaving] = decision.loss[leaves]
                argmax[leaving] = decision.argmax[leaves]
            else:
                if read is None:
                    read = self._exit_states(block, x, leaving, active, shape, work)
                else:
                    read = read[leaves]
                loss[leaving], argmax[leaving] = self._read_out(block, read, wanted[leaving], work)
            if entered is not None and self.kv == "propagate":
                x[leaving] = entered[leaves]
            active = active[stays]
            if len(active) == 0:
                break
        if len(active):
            loss[active], argmax[active] = self._read_out(last, x[active], wanted[active], work)
        return Routed(*(part.view(shape) for part in (exit_of, loss, argmax, confidence)))

    @torch.no_grad()
    def first_block(self, tokens: Tensor) -> Tensor:
        """States (B * T, D) of tokens (B, T) after the first block, which every token runs: bit for bit those
        that ``run`` would compute, and to be handed to it where the same tokens are run again.
        """
        x = self.model.embed(tokens).flatten(0, 1)
        with autocast(x.device, self.precision):
            for layer in self.model.layers[0]:
                x = self._whole_layer(layer, x, tokens.shape)
        return x

    def _whole_layer(self, layer: Layer, x: Tensor, shape: torch.Size) -> Tensor:
        """States (M, D) after a layer that all tokens run, in new memory."""
        cos, sin = self.model.cos[: shape[1]], self.model.sin[: shape[1]]
        return layer(x.view(*shape, -1), cos, sin).flatten(0, 1)

    def _exit_states(
        self, exit: int, x: Tensor, index: Tensor, arrived: Tensor, shape: torch.Size, work: Work
    ) -> Tensor:
        """What the exit reads out, (N, D), of the tokens ``index`` (N,) among those that ``arrived``.

        x (M, D) are all states.
        """
        layer = self.model.exit_layer(exit)
        if layer is None or not len(index):
            return x[index]
        # Tokens that arrived and those that left before lie in x as later ones are to see them, except that
        # some are dropped.
        readers = arrived if self.kv == "drop" else index
        with autocast(x.device, self.precision):
            if len(readers) == len(x):
                work.count_exit_layer(exit, len(x), len(x), len(x) * shape[1])
                return layer(
                    x.view(*shape, -1), self.model.cos[: shape[1]], self.model.sin[: shape[1]]
                ).flatten(0, 1)[index]
            field = _Field(
                "drop" if self.kv == "drop" else "propagate", readers, shape, self.model.cos, self.model.sin
            )
            work.count_exit_layer(exit, len(readers), field.key_values, field.pairs)
            out = field.outputs(layer, x)
        return out if readers is index else out[torch.searchsorted(arrived, index)]

    def _read_out(self, exit: int, states: Tensor, targets: Tensor, work: Work) -> tuple[Tensor, Tensor]:
        work.count_readouts(exit, len(states))
        if not len(states):
            return states.new_empty(0, dtype=torch.float32), torch.empty_like(targets)
        return predictions(self.model.readout_input(exit, states), self.readouts[exit], targets)[:2]


class _Field:
    """Which tokens a block runs, which keys they see, and where both stand in padded rows.

    Only sequences with a token still in have a row (R of them), and only up to the last such token of any.
    For padding of queries scores are computed and nothing else; keys and values (``propagate``) are made up
    to that last token in every row.
    """

    def __init__(self, kv: str, active: Tensor, shape: torch.Size, cos: Tensor, sin: Tensor):
        """``active`` (N,) numbers the tokens still in within the batch (B * T), in order.

        cos and sin are the model's.
        """
        batch, length = shape
        device = active.device
        still_in = torch.zeros(batch * length, dtype=torch.bool, device=device).index_fill_(0, active, True)
        last = (still_in.view(shape) * torch.arange(1, length + 1, device=device)).amax(1) - 1
        row_of = torch.cumsum(last >= 0, 0) - 1
        self.running = active
        if kv == "recompute":
            self.running = (
                (torch.arange(length, device=device) <= last.unsqueeze(1)).flatten().nonzero().squeeze(1)
            )
        row, position = self.running // length, self.running % length
        counts = torch.bincount(row, minlength=batch)
        sizes = torch.stack((row_of[-1] + 1, counts.max(), last.max() + 1))
        num_rows, width, reach = sizes.tolist()  # at once: every number read makes an accelerator wait
        start = counts.cumsum(0) - counts
        self.cos, self.sin = cos[position], sin[position]
        self.slot = row_of[row] * width + torch.arange(len(row), device=device) - start[row]
        """Of the running tokens, in rows of ``width`` queries."""
        self.shape, self.queries, self.keys = shape, (num_rows, width), (num_rows, width)
        self.key_values, self.visible = len(self.running), None
        if kv == "propagate":
            self.rows = None if num_rows == batch else (last >= 0).nonzero().squeeze(1)
            self.key_slot = row_of[row] * reach + position
            self.key_cos, self.key_sin = cos[:reach], sin[:reach]
            self.keys, self.key_values = (num_rows, reach), num_rows * reach
            of_query = position.new_zeros(num_rows * width).index_copy_(0, self.slot, position)
            visible = torch.arange(reach, device=device) <= of_query.unsqueeze(-1)
            self.visible = visible.view(num_rows, 1, width, reach)
        self.pairs = num_rows * width * self.keys[1]
        """Query-key pairs a layer scores."""
        self._padded: list[Tensor] = []

    def run(self, layer: Layer, x: Tensor) -> Tensor:
        """States (M, D) after a layer that runs for the ``running`` tokens; those of the others stay."""
        return x.index_copy_(0, self.running, self.outputs(layer, x))

    def outputs(self, layer: Layer, x: Tensor) -> Tensor:
        """What a layer makes of the ``running`` tokens, given all states (M, D)."""
        running = x.index_select(0, self.running)
        if self.visible is None:
            source = layer.attention_input(running)
            key, value = (
                self._pad(place, part)
                for place, part in enumerate(layer.keys_values(source, self.cos, self.sin))
            )
            # queries and keys are the same tokens in order, padding behind them
            mask: dict[str, Any] = {"is_causal": True}
        else:
            # What stands for a token that left is its last state: keys and values of a row are one product,
            # wherever it is read.
            rows = x.view(*self.shape, -1)
            rows = (rows if self.rows is None else rows.index_select(0, self.rows))[:, : self.keys[1]]
            source = layer.attention_input(rows)
            key, value = layer.keys_values(source, self.key_cos, self.key_sin)
            source, mask = source.flatten(0, 1).index_select(0, self.key_slot), {"attn_mask": self.visible}
        query = self._pad(2, layer.queries(source, self.cos, self.sin)).unflatten(0, self.queries)
        if self.visible is None:
            key, value = key.unflatten(0, self.keys), value.unflatten(0, self.keys)
        attended = attend(query, key, value, **mask).flatten(0, 1).index_select(0, self.slot)
        return layer.finish(running, attended)

    def _pad(self, place: int, part: Tensor) -> Tensor:
        """Tokens (N, ...) in rows of ``width``, in a buffer used again; its padding is zero, so finite."""
        while len(self._padded) <= place:
            self._padded.append(part.new_zeros(0))
        if not len(self._padded[place]):
            self._padded[place] = part.new_zeros(self.queries[0] * self.queries[1], *part.shape[1:])
        return self._padded[place].index_copy_(0, self.slot, part)
