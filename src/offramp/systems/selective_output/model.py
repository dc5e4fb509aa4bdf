"""A language model that may decline to speak: a Pythia-shaped backbone, an output gate, and skipped steps.

After every token the gate says whether the model speaks at once. If not, it takes a skipped step: its state
h, projected by P, stands where a token's embedding would, and the answer is attempted again. For the same
token the attempts are

    h_0(i) = N( Layers( e(x_i) | x_1 .. x_i ) )
    h_j(i) = N( Layers( P h_j-1(i) | x_1 .. x_i, skipped steps 1 .. j of i ) )

A skipped step reads the tokens so far and the skipped steps of its place, at the rotary position of its
token; nobody else reads it. So attempts never see what they are to predict, all places run in parallel, and a
generation with cached keys and values computes exactly what training computed. The model of the report
``selective-output`` trained without skipped steps and, in use, dropped its context after every token
(``Writer`` with ``keeps_context=False``).

    layer    x + attention(N(x)) + ffn(N(x)), one LayerNorm for both, with biases;
             rotary on a quarter of each head, GELU
    gate     sigmoid( W2 GELU( W1 h ) )

Shapes: B sequences, T positions, H heads, E width of a head, R rotated dimensions, D width, V vocabulary, m
most skipped steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp.errors import UserError
from offramp.nn.layers import attend, rotary_table
from offramp.nn.pretrained_layers import rotate_part

INITIAL_STD = 0.02

KeysValues = list[tuple[Tensor, Tensor]]
"""Per layer keys and values, each (B, S, H, E)."""


@dataclass(frozen=True)
class SelectiveConfig:
    """Sizes of a model; the defaults are the report's, whose vocabulary has 50,304 entries.

    Raises UserError for sizes that do not fit together.
    """

    vocab_size: int
    window: int
    """Longest sequence, in tokens."""
    width: int = 512
    layers: int = 6
    heads: int = 8
    ffn_width: int = 2048
    gate_width: int = 128
    rotary_share: float = 0.25
    """The share of the dimensions of a head that rotary positions turn."""

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise UserError(f"heads = {self.heads} does not divide width = {self.width}; use one that does")
        if self.rotated < 2 or self.rotated % 2 or self.rotated > self.width // self.heads:
            raise UserError(
                f"rotary_share = {self.rotary_share} of a head of {self.width // self.heads} turns "
                f"{self.rotated} dimensions; they go in pairs: use a share that gives an even number from 2 "
                "to the head's width"
            )

    @property
    def rotated(self) -> int:
        """R: how many dimensions of a head rotary positions turn."""
        return round(self.rotary_share * (self.width // self.heads))


def require_skips(max_skip: int) -> None:
    """Raises UserError for a negative number of skipped steps."""
    if max_skip < 0:
        raise UserError(f"max_skip = {max_skip} counts skipped steps; use 0 (always speak at once) or more")


class ParallelLayer(nn.Module):
    """Attention and feed-forward part side by side on one LayerNorm, with biases."""

    def __init__(self, width: int, heads: int, ffn_width: int):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attn_out = nn.Linear(width, width)
        self.ffn_in = nn.Linear(width, ffn_width)
        self.ffn_out = nn.Linear(ffn_width, width)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, before: tuple[Tensor, Tensor] | None, **mask: Any
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """States (B, T, D) after the layer, and the keys and values (B, T, H, E) of its inputs x (B, T, D).

        x stands at the positions of cos and sin and attends to the keys and values ``before`` it (B, S, H, E)
        and to those of itself, as ``mask`` allows.
        """
        source = self.norm(x)
        query, key, value = self.query_key_value(source).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        query, key = rotate_part(query, cos, sin), rotate_part(key, cos, sin)
        keys, values = (
            (key, value) if before is None else (torch.cat(pair, 1) for pair in zip(before, (key, value)))
        )
        attended = attend(query, keys, values, **mask)
        out = x + self.attn_out(attended.flatten(-2)) + self.ffn_out(F.gelu(self.ffn_in(source)))
        return out, (key, value)


class OutputGate(nn.Module):
    """The probability (...) of speaking now, from states (..., D)."""

    def __init__(self, width: int, gate_width: int):
        super().__init__()
        self.inner = nn.Linear(width, gate_width)
        self.outer = nn.Linear(gate_width, 1)

    def forward(self, states: Tensor) -> Tensor:
        return torch.sigmoid(self.outer(F.gelu(self.inner(states))).squeeze(-1))


class SelectiveLM(nn.Module):
    """Embedding, layers, final norm, a readout (V, D), the gate, and the projection P of skipped steps."""

    cos: Tensor
    sin: Tensor
    """Rotary tables (window, R / 2)."""

    def __init__(self, config: SelectiveConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(
            ParallelLayer(config.width, config.heads, config.ffn_width) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.vocab_size, bias=False)
        self.gate = OutputGate(config.width, config.gate_width)
        self.project = nn.Linear(config.width, config.width)
        cos, sin = rotary_table(config.window, config.rotated)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=INITIAL_STD)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def states(self, tokens: Tensor) -> Tensor:
        """h_0 (B, T, D): the first attempt after every token of tokens (B, T)."""
        return self.attempts(tokens, 0)[0]

    def attempts(self, tokens: Tensor, max_skip: int) -> list[Tensor]:
        """h_0 .. h_m, each (B, T, D): what would be said after 0 to ``max_skip`` skipped steps, at every
        place of tokens (B, T).

        UserError for max_skip < 0 and for more tokens than the window.
        """
        require_skips(max_skip)
        length = tokens.shape[1]
        _require_length(length, self.config.window)
        turns = self.cos[:length], self.sin[:length]
        h, read = self.run(self.embedding(tokens), *turns, None, is_causal=True)
        attempts, itself = [h], torch.eye(length, dtype=torch.bool, device=tokens.device)
        allowed = itself.new_ones(length, length).tril()
        for _ in range(max_skip):
            # besides the tokens so far, each place reads its skipped steps
            allowed = torch.cat((allowed, itself), 1)
            h, more = self.run(self.project(h), *turns, read, attn_mask=allowed)
            read = _appended(read, more)
            attempts.append(h)
        return attempts

    def run(
        self, x: Tensor, cos: Tensor, sin: Tensor, read: KeysValues | None, **mask: Any
    ) -> tuple[Tensor, KeysValues]:
        """Final states (B, T, D) of inputs x (B, T, D) that attend to what is ``read`` and to themselves, and
        their keys and values."""
        keys_values: KeysValues = []
        for layer, before in zip(self.layers, read or itertools.repeat(None)):
            x, of_layer = layer(x, cos, sin, before, **mask)
            keys_values.append(of_layer)
        return self.norm(x), keys_values


def _require_length(length: int, window: int) -> None:
    if length > window:
        raise UserError(
            f"tokens: {length} of them do not fit the model's window of {window}; "
            "give fewer or build a longer one"
        )


# Generation ---------------------------------------------------------------------------------

Choose = Callable[[Tensor], int]
"""A token from logits (V,)."""


def greedy(logits: Tensor) -> int:
    """Choose the likeliest token."""
    return int(logits.argmax())


def sampled(generator: torch.Generator) -> Choose:
    """Draw from the softmax."""
    return lambda logits: int(torch.multinomial(logits.softmax(-1), 1, generator=generator))


@dataclass
class Written:
    """A continuation and how it came about."""

    tokens: list[int] = field(default_factory=list)
    skips: int = 0
    gates: list[float] = field(default_factory=list)
    """The gate at every step that could choose."""

    @property
    def steps(self) -> int:
        """Tokens and skipped steps together."""
        return len(self.tokens) + self.skips


class Writer:
    """One text as it is written: cached keys and values of its tokens, and of skipped steps since the last
    one.

    Without ``keeps_context`` every step runs alone at position 0: the report's mistake.
    """

    def __init__(self, model: SelectiveLM, keeps_context: bool = True):
        self.model, self.keeps_context = model, keeps_context
        self.length = 0
        self._tokens: KeysValues | None = None
        self._skipped: KeysValues | None = None

    def read(self, tokens: Sequence[int]) -> Tensor:
        """Append tokens, at first a whole prompt and later one at a time; returns h_0 (D,) after the last.

        Raises UserError for more tokens than the window.
        """
        if self.keeps_context:
            _require_length(self.length + len(tokens), self.model.config.window)
        else:
            self.length, self._tokens = 0, None
        places, self._skipped = slice(self.length, self.length + len(tokens)), None
        x = self.model.embedding(torch.tensor([list(tokens)], device=self.model.cos.device))
        h, keys_values = self.model.run(
            x, self.model.cos[places], self.model.sin[places], self._tokens, is_causal=self._tokens is None
        )
        self._tokens = _joined(self._tokens, keys_values)
        self.length = places.stop
        return h[0, -1]

    def skip(self, h: Tensor) -> Tensor:
        """Another attempt (D,) at the same place from the one before, h (D,)."""
        place = self.length - 1 if self.keeps_context else 0
        before = _joined(self._tokens, self._skipped) if self.keeps_context else None
        h, keys_values = self.model.run(
            self.model.project(h)[None, None],
            self.model.cos[place : place + 1],
            self.model.sin[place : place + 1],
            before,
        )
        self._skipped = _joined(self._skipped, keys_values)
        return h[0, 0]


def _joined(before: KeysValues | None, after: KeysValues | None) -> KeysValues | None:
    if before is None or after is None:
        return before if after is None else after
    return _appended(before, after)


def _appended(before: KeysValues, after: KeysValues) -> KeysValues:
    return [
        (torch.cat((keys, more_keys), 1), torch.cat((values, more_values), 1))
        for (keys, values), (more_keys, more_values) in zip(before, after)
    ]


@torch.no_grad()
def write(
    model: SelectiveLM,
    prompt: Sequence[int],
    new_tokens: int,
    max_skip: int,
    threshold: float = 0.5,
    choose: Choose = greedy,
    keeps_context: bool = True,
) -> Written:
    """Continue ``prompt`` by ``new_tokens`` tokens.

    Each is spoken where the gate exceeds ``threshold``, or after ``max_skip`` skipped steps. Raises UserError
    for an empty prompt, a negative max_skip, and more tokens than the window.
    """
    require_skips(max_skip)
    if not len(prompt):
        raise UserError("prompt is empty; give at least one token")
    if keeps_context:
        _require_length(len(prompt) + new_tokens, model.config.window)
    writer, out = Writer(model, keeps_context), Written()
    h = writer.read(prompt)
    for _ in range(new_tokens):
        for _ in range(max_skip):
            out.gates.append(float(model.gate(h)))
            if out.gates[-1] > threshold:
                break
            h = writer.skip(h)
            out.skips += 1
        out.tokens.append(choose(model.head(h)))
        h = writer.read(out.tokens[-1:])
    return out
