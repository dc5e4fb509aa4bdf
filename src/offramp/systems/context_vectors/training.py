"""Training the context-vector model: contexts without targets (phase 1), then what reads them (phase 2).

Phase 1 looks for contexts P that the step of the model maps onto themselves, moved by one token, while they
stay spread out:

    c = Block(P_{t-1} + noise, x_t),   loss = (1 - w) mean (c - P_t)^2 + w diversity(c),   then P <- c

one Adam step per iteration over the whole stream, until nearly all tokens have moved by less than a
tolerance. Of two formulas for the diversity, "batch" is the report's, -||c - mean||_F / n, which shrinks with
the root of the batch's size n; "rms" is the root mean square of c - mean, negative, whatever the batch and
the width. A later loss of the report is ``oacd`` alone.

Phase 2 freezes all that and fits the token block and the head to cached contexts by the loss of the next
token.

Shapes: N tokens of the stream, n of a batch, D context width, d_i width of layer i, E token width, V
vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from offramp.errors import UserError
from offramp.states.statistics import Readout, predictions
from offramp.systems.context_vectors.model import ContextVectorLM
from offramp.systems.context_vectors.recurrence import previous_contexts
from offramp.systems.context_vectors.store import Contexts
from offramp.systems.lagged.model import oacd
from offramp.training.loop import Best, Training, every
from offramp.training.losses import total_nll

LOSSES, DIVERSITIES = ("cvfp", "oacd"), ("batch", "rms")
START_STD = 0.01
"""Of the contexts before the first iteration."""
UNKNOWN = -1
"""The target of a token after which its document ends."""


# Phase 1 ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FixedPoint:
    """How contexts are searched for; the defaults are the report's.

    Raises UserError for a loss or a diversity that does not exist, and for a weight that is no share.
    """

    loss: str = "cvfp"
    diversity: str = "batch"
    weight: float = 0.8
    """w: the weight of diversity against the distance from the contexts before."""
    noise: float = 0.1
    """Standard deviation of what is added to the contexts that are put in."""
    learning_rate: float = 2e-3
    clip_norm: float = 1.0
    batch: int = 8000
    """Consecutive tokens whose gradients are made at a time; all of them make one step."""
    tolerance: float = 0.03
    """Mean square by which the context of a converged token moves at most."""
    share: float = 0.99
    """The share of tokens that have to be converged."""
    fewest: int = 5
    most: int = 40
    """Iterations, at least and at most."""
    wrap: bool = False
    """Whether the stream is taken for a ring without documents: the report's mistake."""

    def __post_init__(self) -> None:
        for name, known in (("loss", LOSSES), ("diversity", DIVERSITIES)):
            if getattr(self, name) not in known:
                raise UserError(
                    f"{name} = {getattr(self, name)!r} is unknown to phase 1; use one of {', '.join(known)}"
                )
        if not 0 <= self.weight <= 1:
            raise UserError(f"weight = {self.weight} of diversity is a share of the loss; give 0 to 1")


@dataclass
class ContextSearch:
    """What phase 1 left, besides the model's weights."""

    contexts: Tensor
    """(N, D) of the last iteration: with noise, and from the weights before the last step. The report took
    them for the contexts of the model that it kept."""
    before: Tensor
    """(N, D) of the iteration before."""
    converged: list[float] = field(default_factory=list)
    """Share of converged tokens by iteration."""

    @property
    def iterations(self) -> int:
        """How many there were, with the first, which only puts contexts in place of their random start."""
        return len(self.converged) + 1


def find_contexts(
    model: ContextVectorLM, tokens: Tensor, begins: Tensor, how: FixedPoint, seed: int
) -> ContextSearch:
    """Train the context block on tokens (N,) of documents that start where ``begins`` (N,) says.

    The embedding stays as it is. This is a fixed-point iteration, not a fit that ``training.loop`` could
    make: it is judged on no other text, its end depends on its state alone, and that state is what it
    returns.
    """
    generator = torch.Generator().manual_seed(seed)
    width = model.config.context_width
    search = ContextSearch(START_STD * torch.randn(len(tokens), width, generator=generator), torch.empty(0))
    optimiser = torch.optim.Adam(model.context_block.parameters(), lr=how.learning_rate, fused=True)
    batches = math.ceil(len(tokens) / how.batch)
    for iteration in range(1, how.most + 1):
        given = previous_contexts(search.contexts, begins, how.wrap)
        given.add_(torch.randn(given.shape, generator=generator), alpha=how.noise)
        mapped = torch.empty_like(given)
        optimiser.zero_grad(set_to_none=True)
        for start in range(0, len(tokens), how.batch):
            batch = slice(start, start + how.batch)
            with torch.no_grad():
                x = model.embed(tokens[batch])
            with torch.set_grad_enabled(iteration > 1):
                out = model.context_block(given[batch], x)[-1]
            if iteration > 1:
                (phase_1_loss(out, search.contexts[batch], how) / batches).backward()
            mapped[batch] = out.detach()
        if iteration > 1:
            nn.utils.clip_grad_norm_(model.context_block.parameters(), how.clip_norm)
            optimiser.step()
            moved = (mapped - search.contexts).square().mean(dim=1)
            search.converged.append(float((moved < how.tolerance).float().mean()))
        search.before, search.contexts = search.contexts, mapped
        if iteration >= max(2, how.fewest) and search.converged[-1] >= how.share:
            break
    return search


def phase_1_loss(contexts: Tensor, wanted: Tensor, how: FixedPoint) -> Tensor:
    """The loss of contexts (n, D) whose predecessors were ``wanted`` (n, D)."""
    if how.loss == "oacd":
        return oacd(contexts)
    spread = torch.linalg.vector_norm(contexts - contexts.mean(dim=0))
    diversity = -spread / (len(contexts) if how.diversity == "batch" else math.sqrt(contexts.numel()))
    return (1 - how.weight) * (contexts - wanted).square().mean() + how.weight * diversity


# Phase 2 ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """How the token block learns; the defaults are the report's."""

    learning_rate: float = 1e-3
    clip_norm: float = 1.0
    batch: int = 3171
    """Tokens of an update."""
    shuffled: bool = False
    """Whether tokens of a shard are drawn in random order: nothing binds them to each other once their
    contexts are cached."""
    norm: bool = True
    """Whether the embedding's norm is trained too, away from the one that the contexts were made with."""


def next_tokens(tokens: Tensor, begins: Tensor) -> Tensor:
    """The target (N,) of every token: the next one of its document, UNKNOWN where it ends."""
    targets = tokens.roll(-1)
    targets[begins.roll(-1)] = UNKNOWN
    targets[-1] = UNKNOWN
    return targets


def updates_per_epoch(contexts: Contexts, how: Reading) -> int:
    """Updates of one pass over all targets; batches do not span shards."""
    known = next_tokens(contexts.tokens, contexts.begins) != UNKNOWN
    return sum(math.ceil(int(known[rows].sum()) / how.batch) for rows, _ in contexts)


def learn_to_read(
    model: ContextVectorLM,
    contexts: Contexts,
    how: Reading,
    look: Callable[[], float],
    *,
    looks: int,
    updates_per_look: int,
    seed: int,
    patience: int | None = None,
) -> None:
    """Train on cached contexts and leave the weights of the look at which ``look()`` was lowest.

    There are ``looks`` looks, one after every ``updates_per_look`` updates, or fewer: ``patience`` of them in
    a row without a lower value end the training.
    """
    parameters = model.reading_parameters(how.norm)
    optimiser = torch.optim.Adam(parameters, lr=how.learning_rate, fused=True)
    batches = _batches(contexts, how, torch.Generator().manual_seed(seed))

    def step(number: int) -> None:
        tokens, outputs, targets = next(batches)
        optimiser.zero_grad(set_to_none=True)
        (total_nll(model.read(tokens, outputs), model.readout_matrix(), targets) / len(targets)).backward()
        nn.utils.clip_grad_norm_(parameters, how.clip_norm)
        optimiser.step()

    Training(
        step=step,
        look=lambda updates: ([], look()),
        steps=looks * updates_per_look,
        looks=every(updates_per_look, looks * updates_per_look),
        selection=Best(model, patience),
    ).run()


def _batches(
    contexts: Contexts, how: Reading, generator: torch.Generator
) -> Iterator[tuple[Tensor, list[Tensor], Tensor]]:
    """Tokens (n,), their contexts (n, d_i) and targets (n,), without end; memory holds one shard at a
    time."""
    targets = next_tokens(contexts.tokens, contexts.begins)
    while True:
        for shard, outputs in contexts:
            known = (targets[shard] != UNKNOWN).nonzero().flatten()
            order = known[torch.randperm(len(known), generator=generator)] if how.shuffled else known
            for rows in order.split(how.batch):
                yield contexts.tokens[shard][rows], [output[rows] for output in outputs], targets[shard][rows]


Parts = Iterable[tuple[slice, Sequence[Tensor]]]
"""Which tokens, and the contexts (n, d_i) of all layers for them."""


@torch.no_grad()
def reading_losses(
    model: ContextVectorLM, tokens: Tensor, begins: Tensor, parts: Parts
) -> tuple[Tensor, Tensor]:
    """The loss in nats of all M tokens with a target, and whether the likeliest token is right, each (M,)."""
    targets, readout = next_tokens(tokens, begins), Readout(model.readout_matrix())
    losses, right = [], []
    for rows, outputs in parts:
        known = targets[rows] != UNKNOWN
        wanted = targets[rows][known]
        if len(wanted):
            loss, argmax, _ = predictions(model.read(tokens[rows], outputs)[known], readout, wanted)
            losses.append(loss)
            right.append(argmax == wanted)
    return torch.cat(losses), torch.cat(right)


def stopped_at(nll: Sequence[float], patience: int | None) -> int:
    """The place of the best look before ``patience`` looks in a row brought no better one; of all looks where
    None.

    This is a rule for looks that were made anyway: rates are constant, so a training that stops is the
    beginning of one that does not. Raises UserError for a patience below 1.
    """
    if patience is not None and patience < 1:
        raise UserError(f"patience = {patience} looks; give at least 1, or none to look at all of them")
    best = 0
    for place, value in enumerate(nll):
        if value < nll[best]:
            best = place
        elif patience is not None and place - best >= patience:
            break
    return best
