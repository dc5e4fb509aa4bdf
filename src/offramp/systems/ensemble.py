"""Training several models of one architecture at once: one model per random seed, as one batch of weights.

Their weights are stacked along a first dimension and one pass serves all of them (torch.func.vmap): fewer and
larger operations, which pays for models of one or two narrow layers (benchmarks/ensemble.py). The members
share nothing, so the gradient of the summed losses is every member's own, and each goes through the updates
it would go through alone.

Shapes: S members, B sequences, T positions, V symbols; every weight and every batch has S as its first
dimension.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from offramp.errors import UserError
from offramp.systems.objectives import Carried, Objective
from offramp.training.loop import BestOfEach, Training

Weights = dict[str, Tensor]
Batches = Iterator[tuple[Tensor, Tensor]]
"""Tokens and targets, each (S, B, T), without end."""

EVALUATED_TOGETHER = 64
"""Sequences per member in one pass of ``mean_nll``: a bound on memory."""


class _Applied(nn.Module):
    """A model as an argument of a function, so that its weights can be exchanged while the function runs."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(self.model, *args)


class _Folded(torch.autograd.Function):
    """Causal attention of (B, H, T, E) whose rule for vmap takes the members for more sequences.

    torch's fused kernel for CPUs has none: it would run member by member, and the unfused one is slower.
    """

    @staticmethod
    def forward(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(query, key, value, is_causal=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Nothing to keep: the gradient is that of what ``vmap`` calls."""

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], *tensors: Tensor) -> tuple[Tensor, int]:
        members = info.batch_size
        stacked = [
            x.expand(members, *x.shape) if dim is None else x.movedim(dim, 0) for x, dim in zip(tensors, dims)
        ]
        query, key, value = (x.flatten(0, 1) for x in stacked)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        return attended.unflatten(0, (members, -1)), 0


class _FoldAttention(TorchFunctionMode):
    """Sends causal attention through ``_Folded``."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention and {
            name for name, value in kwargs.items() if value
        } == {"is_causal"}:
            return _Folded.apply(*args)
        return function(*args, **kwargs)


class Ensemble:
    """Models that ``build(seed)`` makes, one per seed, with their weights stacked.

    ``build`` draws from torch's global generator, which is seeded before and restored after each call. Models
    must run under vmap: no decisions that depend on data, no writing into arguments.
    """

    def __init__(self, build: Callable[[int], nn.Module], seeds: Sequence[int]):
        if not seeds:
            raise UserError("ensemble: seeds is empty; give at least one")
        self.seeds = tuple(seeds)
        self.become([_seeded(build, seed) for seed in self.seeds])

    def become(self, models: Sequence[nn.Module]) -> None:
        """Take these modules' architecture and weights, one per seed; all parameters then learn."""
        weights, self.buffers = stack_module_state(list(models))
        self.weights: Weights = {
            name: weight.detach().clone().requires_grad_() for name, weight in weights.items()
        }
        self._module = _Applied(copy.deepcopy(models[0]).to("meta"))

    def __len__(self) -> int:
        return len(self.seeds)

    def __call__(self, function: Callable[..., Any], *batch: Any) -> Any:
        """What ``function(model, *one member's part of batch)`` returns for every member, stacked.

        ``batch`` holds tensors whose first dimension is S, or tuples of them.
        """

        def of_member(state: Weights, *args: Any) -> Any:
            return functional_call(self._module, state, (function, *args))

        state = {f"model.{name}": value for name, value in (self.weights | self.buffers).items()}
        if len(self) == 1:  # the same operations, without what vmap adds to each
            outputs = of_member(*tree_map_only(Tensor, lambda x: x.squeeze(0), (state, *batch)))
            return tree_map_only(Tensor, lambda x: x.unsqueeze(0), outputs)
        with _FoldAttention():
            return vmap(of_member)(state, *batch)

    def freeze(self, frozen: Callable[[str], bool]) -> None:
        """Train the weights for whose name ``frozen`` is false, and no others."""
        for name, weight in self.weights.items():
            weight.requires_grad_(not frozen(name))

    def trainable(self) -> Weights:
        """The weights that learn, by name."""
        return {name: weight for name, weight in self.weights.items() if weight.requires_grad}

    def member(self, index: int) -> nn.Module:
        """A plain module with copies of the member's weights."""
        model = copy.deepcopy(self._module.model).to_empty(device=next(iter(self.weights.values())).device)
        state = {name: value[index].detach().clone() for name, value in (self.weights | self.buffers).items()}
        for name, value in state.items():
            owner, _, leaf = name.rpartition(".")
            getattr(model.get_submodule(owner), leaf).data = value
        return model

    def snapshot(self) -> Weights:
        """Copies of all weights, by name."""
        return {name: weight.detach().clone() for name, weight in self.weights.items()}

    def restore(self, weights: Weights) -> None:
        """Put these values in place of the weights of the same names."""
        with torch.no_grad():
            for name, weight in weights.items():
                self.weights[name].copy_(weight)


def _seeded(build: Callable[[int], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build(seed)


@dataclass(frozen=True)
class Fitted:
    """What training did to one member."""

    curve: list[float]
    """Perplexity at every look."""
    best_look: int
    """Place of the best in ``curve``, counted from 1: the epoch where looks are epochs."""
    best_nll: float
    updates: int
    """How many the optimiser made until the member stopped."""

    @property
    def best_ppl(self) -> float:
        """Perplexity at the best look."""
        return math.exp(min(self.best_nll, 100.0))


@dataclass(frozen=True)
class Optimisation:
    """AdamW at a constant rate with the gradient norm of each member clipped, as the reports have it."""

    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    rate_of: Callable[[str], float] = lambda name: 1.0
    """Learning rate of a weight by its name, relative to ``learning_rate``."""


AS_PUBLISHED = Optimisation()
Watch = Callable[[Ensemble, Tensor, Tensor], None]
"""Called with the members and a batch (S, B, T)."""


def fit(
    ensemble: Ensemble,
    batches: Batches,
    objective: Objective,
    evaluate: Callable[[Ensemble], Tensor],
    *,
    looks: Sequence[int],
    patience: int | None = None,
    how: Optimisation = AS_PUBLISHED,
    restore_best: bool = True,
    watch: Watch | None = None,
) -> list[Fitted]:
    """Train all members towards an objective by ``fit_members``, a batch per step.

    ``watch`` sees every batch before it is learnt from.
    """
    optimiser = optimiser_of(ensemble, how)

    def step(number: int) -> None:
        tokens, targets = next(batches)
        if watch is not None:
            watch(ensemble, tokens, targets)
        update(ensemble, optimiser, objective, tokens, targets, how.clip_norm)

    return fit_members(
        ensemble,
        step,
        evaluate,
        looks=looks,
        patience=patience,
        restore_best=restore_best,
        updates_per_step=objective.segments,
    )


def fit_members(
    ensemble: Ensemble,
    step: Callable[[int], None],
    evaluate: Callable[[Ensemble], Tensor],
    *,
    looks: Sequence[int],
    patience: int | None = None,
    restore_best: bool = True,
    updates_per_step: int = 1,
) -> list[Fitted]:
    """Train all members; after each of ``looks`` steps, rising, look at ``evaluate`` (S,), NLL in nats.

    The last look ends the training. With ``patience`` a member stops after that many looks in a row without a
    better one, and its weights stay what they were then. In the end every member has the weights of its best
    look, or without ``restore_best`` its last ones.
    """
    selection = BestOfEach(ensemble.weights, patience, restore_best)
    Training(
        step=step,
        look=lambda steps: ([], evaluate(ensemble).tolist()),
        steps=looks[-1],
        looks=frozenset(looks),
        selection=selection,
    ).run()
    return [
        Fitted(
            [math.exp(min(nll, 100.0)) for nll in selection.curves[member]],
            selection.best_look[member],
            selection.lowest[member],
            updates_per_step * selection.steps[member],
        )
        for member in range(len(ensemble))
    ]


def optimiser_of(ensemble: Ensemble, how: Optimisation) -> torch.optim.AdamW:
    """AdamW for the weights that learn: elementwise, so that members which share it do not see each other."""
    rates: dict[float, list[Tensor]] = {}
    for name, weight in ensemble.trainable().items():
        rates.setdefault(how.rate_of(name), []).append(weight)
    if not rates:
        raise UserError("ensemble: every weight is frozen, so there is nothing to train; leave one trainable")
    groups = [{"params": weights, "lr": how.learning_rate * rate} for rate, weights in rates.items()]
    return torch.optim.AdamW(groups, weight_decay=how.weight_decay, fused=True)


def update(
    ensemble: Ensemble,
    optimiser: torch.optim.Optimizer,
    objective: Objective,
    tokens: Tensor,
    targets: Tensor,
    clip_norm: float,
) -> None:
    """One optimiser step per segment of the objective on a batch (S, B, T)."""
    carried: Carried = ()
    for _ in range(objective.segments):
        optimiser.zero_grad(set_to_none=True)
        losses, carried = ensemble(objective.loss, tokens, targets, carried)
        losses.sum().backward()
        carried = tuple(part.detach() for part in carried)
        clip_each([weight.grad for weight in ensemble.weights.values() if weight.grad is not None], clip_norm)
        optimiser.step()


def clip_each(gradients: Sequence[Tensor], clip_norm: float) -> None:
    """Scale gradients (S, ...) in place so that no member's joint norm exceeds ``clip_norm``."""
    norms = torch.stack([gradient.flatten(1).norm(dim=1) for gradient in gradients]).norm(dim=0)
    scale = (clip_norm / (norms + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(scale.view(-1, *[1] * (gradient.ndim - 1)))


def mean_nll(ensemble: Ensemble, objective: Objective, tokens: Tensor, targets: Tensor) -> Tensor:
    """Mean NLL (S,) in nats over all of tokens and targets (N, T), the same for every member."""

    def total(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(objective.logits(model, x).flatten(0, -2), y.flatten(), reduction="sum")

    sums = torch.zeros(len(ensemble), dtype=torch.float64)
    with torch.no_grad():
        for x, y in zip(tokens.split(EVALUATED_TOGETHER), targets.split(EVALUATED_TOGETHER)):
            sums += ensemble(total, *(part.expand(len(ensemble), *part.shape) for part in (x, y))).double()
    return sums / targets.numel()


def batch_flops(ensemble: Ensemble, objective: Objective, tokens: Tensor, targets: Tensor) -> int:
    """FLOPs of one member's updates on a batch (B, T): matrix products, forward and backward, as they run."""
    model = ensemble.member(0)
    trained = set(ensemble.trainable())
    for name, weight in model.named_parameters():
        weight.requires_grad_(name in trained)
    carried: Carried = ()
    total = 0
    for _ in range(objective.segments):
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            loss, carried = objective.loss(model, tokens, targets, carried)
            loss.backward()
        carried = tuple(part.detach() for part in carried)
        total += counter.get_total_flops()
    return total
