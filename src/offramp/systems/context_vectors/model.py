"""The context-vector model: a recurrent state per token without attention, trained apart from what reads it.

With x_t = LayerNorm(E[w_t]) of token t, E frozen, and c_t the context that token t leaves behind (c before
the first is 0):

    ContextLayer    out = LayerNorm( R c + ReLU(W [c ; x] + b) ),   R the identity where widths are equal
    ContextBlock    c^(0) = c_{t-1},  c^(i) = ContextLayer_i(c^(i-1), x_t),  c_t = c^(L)
    TokenBlock      u_0 = x_t,  u_i = LayerNorm( u_{i-1} + ReLU(W_i [c^(i)_t ; u_{i-1}] + b_i) )
                    logits = head(u_L)

``token_input`` "all" gives x_t to every ContextLayer, all of the context's width D; "first" gives it to the
first layer alone and lets widths fall in equal steps from D + E to D. Which context feeds which token, and
how, is in ``systems.context_vectors.recurrence``. Source: the report ``context-vectors``.

Shapes: N tokens, E their width, D the context's, L layers, d_i the width of layer i's output, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp.errors import UserError
from offramp.systems.initial_weights import EMBEDDING_STD

TOKEN_INPUTS = ("all", "first")
HEADS = ("zero", "untied", "tied")
WEIGHT_STD, BIAS_STD = 0.1, 0.01
"""Of all layers, as published."""


@dataclass(frozen=True)
class ContextVectorConfig:
    """Sizes as published, but for the vocabulary. UserError for widths and layers that do not fit
    together."""

    vocab_size: int
    width: int = 768
    """E, of tokens."""
    context_width: int = 768
    """D, of the context that goes from token to token."""
    layers: int = 6
    token_input: str = "all"
    """all or first: which context layers see the token."""
    head: str = "zero"
    """zero (a matrix and bias of its own, zero at first), untied (a random one), tied (the embedding, without
    a bias)."""

    def __post_init__(self) -> None:
        for name in ("vocab_size", "width", "context_width", "layers"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} = {getattr(self, name)}; give at least 1")
        for name, known in (("token_input", TOKEN_INPUTS), ("head", HEADS)):
            if getattr(self, name) not in known:
                raise UserError(
                    f"{name} = {getattr(self, name)!r} is unknown to the context-vector model; "
                    f"use one of {', '.join(known)}"
                )
        if self.token_input == "first" and self.width % self.layers:
            raise UserError(
                f"layers = {self.layers}: from {self.context_width + self.width} to context_width = "
                f"{self.context_width} there are no {self.layers} equal steps; make width = {self.width} a "
                "multiple of layers, or use token_input: all"
            )

    @property
    def context_widths(self) -> tuple[int, ...]:
        """d_1 .. d_L."""
        if self.token_input == "all":
            return (self.context_width,) * self.layers
        step = self.width // self.layers
        return tuple(self.context_width + self.width - step * layer for layer in range(1, self.layers + 1))


class ContextLayer(nn.Module):
    """One layer of the recurrence; ``token_width`` 0 where it does not see the token."""

    def __init__(self, context_in: int, context_out: int, token_width: int):
        super().__init__()
        self.transform = nn.Linear(context_in + token_width, context_out)
        self.residual = nn.Identity() if context_in == context_out else nn.Linear(context_in, context_out)
        self.norm = nn.LayerNorm(context_out)
        self.context_in, self.token_width = context_in, token_width

    def forward(self, context: Tensor, token: Tensor) -> Tensor:
        """Outputs (N, d_i) of contexts (N, d_{i-1}) and tokens (N, E)."""
        seen = torch.cat((context, token), dim=-1) if self.token_width else context
        return self.norm(self.residual(context) + F.relu(self.transform(seen)))


class ContextBlock(nn.Module):
    """The step from one context to the next."""

    def __init__(self, config: ContextVectorConfig):
        super().__init__()
        self.context_width = config.context_width
        before = (config.context_width, *config.context_widths)
        self.layers = nn.ModuleList(
            ContextLayer(into, out, config.width if place == 0 or config.token_input == "all" else 0)
            for place, (into, out) in enumerate(pairwise(before))
        )

    def forward(self, previous: Tensor, token: Tensor) -> list[Tensor]:
        """Outputs (N, d_i) of every layer for the contexts (N, D) before these tokens (N, E); the last is the
        next context."""
        outputs, context = [], previous
        for layer in self.layers:
            context = layer(context, token)
            outputs.append(context)
        return outputs


class TokenBlock(nn.Module):
    """What reads the contexts of one token."""

    def __init__(self, config: ContextVectorConfig):
        super().__init__()
        self.transforms = nn.ModuleList(
            nn.Linear(context + config.width, config.width) for context in config.context_widths
        )
        self.norms = nn.ModuleList(nn.LayerNorm(config.width) for _ in config.context_widths)

    def forward(self, token: Tensor, contexts: Sequence[Tensor]) -> Tensor:
        """u_L (N, E) of tokens (N, E) and their contexts (N, d_i) of every layer."""
        u = token
        for transform, norm, context in zip(self.transforms, self.norms, contexts, strict=True):
            u = norm(u + F.relu(transform(torch.cat((context, u), dim=-1))))
        return u


class ContextVectorLM(nn.Module):
    """Embedding, context block, token block and head."""

    def __init__(self, config: ContextVectorConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        self.embedding.weight.requires_grad_(False)
        self.embed_norm = nn.LayerNorm(config.width)
        self.context_block = ContextBlock(config)
        self.token_block = TokenBlock(config)
        self.head = None if config.head == "tied" else nn.Linear(config.width, config.vocab_size)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.embedding.weight, std=EMBEDDING_STD)
        for block in (self.context_block, self.token_block):
            for module in block.modules():
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=WEIGHT_STD)
                    nn.init.normal_(module.bias, std=BIAS_STD)
        if self.head is not None:
            nn.init.zeros_(self.head.bias)
            nn.init.normal_(self.head.weight, std=EMBEDDING_STD if self.config.head == "untied" else 0.0)

    def embed(self, tokens: Tensor) -> Tensor:
        """x (N, E) of token ids (N,)."""
        return self.embed_norm(self.embedding(tokens))

    def read(self, tokens: Tensor, contexts: Sequence[Tensor]) -> Tensor:
        """What the readout is applied to, (N, E) or with the bias' constant (N, E + 1), of tokens (N,) and
        contexts (N, d_i)."""
        u = self.token_block(self.embed(tokens), contexts)
        return u if self.head is None else torch.cat((u, u.new_ones(len(u), 1)), dim=-1)

    def readout_matrix(self) -> Tensor:
        """(V, E), or (V, E + 1) with the bias as its last column: losses over blocks of the vocabulary know
        matrices alone."""
        return (
            self.embedding.weight
            if self.head is None
            else torch.cat((self.head.weight, self.head.bias.unsqueeze(1)), dim=1)
        )

    def reading_parameters(self, norm: bool) -> list[nn.Parameter]:
        """What phase 2 trains: token block and head, and the embedding's norm if ``norm`` says so.

        The published phase 2 trains that norm although the contexts it reads were made with the norm before.
        """
        owners = [
            self.token_block,
            *([] if self.head is None else [self.head]),
            *([self.embed_norm] if norm else []),
        ]
        return [parameter for owner in owners for parameter in owner.parameters()]
