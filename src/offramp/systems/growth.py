"""Growing a model layer by layer: what is added, how it starts, and what learns at every stage.

A schedule goes from ``start`` to ``target`` layers, one per stage, each stage with an optimiser of its own:

    frozen append    the new layer and the readout learn, all below stays as it is
    greedy           the same from one layer on
    full append      everything learns
    progressive      the same from one layer on, towards the last exit or towards all of them
    no growth        the control: the same stages, nothing is added

The next stage goes on from the best weights of the one before. Models are ``BlockwiseLM`` with one layer per
block. The report ``character-systems`` has all of these schedules but the control.

**A new layer that changes nothing.** In pre-norm layers, x + f(N(x)), it is enough that the two matrices that
write to the residual stream are zero. A post-norm layer then still gives g2 * N(g1 * N(x)), with N(x) = x /
sqrt(mean x^2 + eps): x itself only where mean x^2 = 1 and g1 = g2 = 1. But x comes from the norm of the layer
below, x = g * u with mean u^2 = 1, and g is trained: N(x) is parallel to x, its length is not that of x,
token by token. So the gain moves up: g2 = g, and the layer below gets gain 1 instead of g. The new layer then
reads u, N(u) = u up to eps, and gives g * u = x: the predictions at full depth are those from before. (The
exit below now reads u through the head that the exits share; where it is supervised it has to learn again.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from torch import nn

from offramp.errors import UserError
from offramp.models.native import BlockwiseLM
from offramp.nn.layers import TransformerLayer
from offramp.systems.ensemble import Ensemble, Optimisation

Initialise = Callable[[nn.Module], None]
"""Sets all weights of a model that was just built."""


@dataclass(frozen=True)
class Schedule:
    """How a model grows from ``start`` to ``target`` layers: a stage for the start, and one per added layer.

    Raises UserError for layers and rates that do not fit together.
    """

    start: int
    target: int
    learns: Literal["all", "new"] = "all"
    """What learns once a layer was added: everything, or the new layer and the readout."""
    new_layer: Literal["random", "identity"] = "random"
    """random: as the whole model was initialised; identity: so that it changes no prediction (see the
    module).
    """
    adds: bool = True
    """False: the control, which keeps its ``start`` layers and trains on, stage by stage."""
    rate_decay: float = 1.0
    """After the first stage, the learning rate of every layer relative to that of the one above it. The
    embedding counts as the lowest layer."""
    fine_tune: float | None = None
    """Rate, relative to the others', of a last stage in which everything learns; None: there is no such
    stage.
    """
    goes_on_from: Literal["best", "last"] = "best"
    """Weights each stage leaves to the next. last: the report's mistake, the overfitted ones of its last
    epoch.
    """
    embedding: Literal["trained", "never trained"] = "trained"
    """Whether the embedding learns in the first stage. never trained: the mistake of the report's greedy
    growth.
    """

    def __post_init__(self) -> None:
        if self.start < 1:
            raise UserError(f"growth: start = {self.start}; a model starts with at least 1 layer")
        if self.target < self.start:
            raise UserError(
                f"growth: target = {self.target} is below start = {self.start}; "
                "raise the target or lower the start"
            )
        if not 0 < self.rate_decay <= 1:
            raise UserError(
                f"growth: rate_decay = {self.rate_decay}; choose it above 0 and at most 1 (equal rates)"
            )
        if self.fine_tune is not None and self.fine_tune <= 0:
            raise UserError(
                f"growth: fine_tune = {self.fine_tune}; choose a rate above 0, or null for no such stage"
            )

    def stages(self) -> list[Stage]:
        """All stages in order."""
        first = Stage("start", self.start, "all", skips_embedding=self.embedding == "never trained")
        grown = [
            Stage(
                f"layer {depth}" if self.adds else f"on {depth}",
                depth if self.adds else self.start,
                self.learns if self.adds else "all",
                adds=self.adds,
                rate_decay=self.rate_decay,
            )
            for depth in range(self.start + 1, self.target + 1)
        ]
        end = (
            [Stage("fine-tune", self.target, "all", rate=self.fine_tune)]
            if self.fine_tune is not None
            else []
        )
        return [first, *grown, *end]


@dataclass(frozen=True)
class Stage:
    """One stage of a schedule."""

    name: str
    depth: int
    """Layers while it trains."""
    learns: Literal["all", "new"]
    """As in ``Schedule``."""
    skips_embedding: bool = False
    """Whether the embedding stays as it is."""
    adds: bool = False
    """Whether it begins with one more layer."""
    rate: float = 1.0
    """Learning rate relative to the configured one."""
    rate_decay: float = 1.0
    """As in ``Schedule``."""

    def rates(self, names: Iterable[str]) -> dict[str, float]:
        """Learning rate, relative to the configured one, of every parameter that learns; the others are
        frozen.

        ``names`` are those of all parameters of a model of this depth.
        """
        top = self.depth - 1
        out = {}
        for name in names:
            layer = _layer_of(name, top)
            if (self.learns == "new" and layer < top) or (self.skips_embedding and layer < 0):
                continue
            out[name] = self.rate * self.rate_decay ** (top - layer)
        return out


SCHEDULES: dict[str, dict[str, Any]] = {
    "frozen append": {"learns": "new"},
    "full append": {},
    "greedy": {"start": 1, "learns": "new"},
    "progressive": {"start": 1},
    "no growth": {"adds": False},
    "greedy, embedding never trained": {"start": 1, "learns": "new", "embedding": "never trained"},
}
"""What each named schedule fixes. The last one is a published mistake, which nothing else turns on."""


def schedule(name: str, target: int, **changes: Any) -> Schedule:
    """The named schedule up to ``target`` layers. Raises UserError for an unknown name."""
    if name not in SCHEDULES:
        raise UserError(f"growth: {name!r} is not a schedule; choose from {', '.join(SCHEDULES)}")
    return Schedule(**{"start": 1, **SCHEDULES[name], "target": target, **changes})


def _layer_of(name: str, top: int) -> int:
    """The layer that a parameter belongs to: -1 for the embedding, the top one for all of the readout."""
    part, *rest = name.split(".")
    if part == "embedding":
        return -1
    return int(rest[0]) if part == "blocks" else top


def begin(
    stage: Stage, ensemble: Ensemble, schedule: Schedule, initialise: Initialise, how: Optimisation
) -> Optimisation:
    """Give every member the layer that the stage adds, let learn what it trains, and return the rates for
    that.
    """
    if stage.adds:
        ensemble.become(
            [
                _deeper(cast(BlockwiseLM, ensemble.member(index)), seed, schedule, initialise)
                for index, seed in enumerate(ensemble.seeds)
            ]
        )
    rates = stage.rates(ensemble.weights)
    ensemble.freeze(lambda name: name not in rates)
    return replace(how, rate_of=rates.__getitem__)


def _deeper(model: BlockwiseLM, seed: int, schedule: Schedule, initialise: Initialise) -> BlockwiseLM:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return add_layer(model, schedule.target, initialise, schedule.new_layer)


def add_layer(
    model: BlockwiseLM,
    target: int,
    initialise: Initialise,
    new_layer: Literal["random", "identity"] = "random",
) -> BlockwiseLM:
    """A model with one more block of one layer on top and the same weights below; the readout moves up.

    ``initialise`` is applied to the whole deeper model before the old weights return, so that a new layer
    starts as the layer of that depth in a model built whole from the same seed. Raises UserError beyond
    ``target`` blocks.
    """
    depth = model.config.num_blocks
    if depth >= target:
        raise UserError(
            f"growth: the model has {depth} layers and its target is {target}; "
            "raise the target, or stop adding"
        )
    if model.config.exit_classifiers:
        raise UserError("growth: exit_classifiers = True; train exit classifiers after the model has grown")
    deeper = BlockwiseLM(replace(model.config, block_layers=(*model.config.block_layers, 1)))
    initialise(deeper)
    deeper.load_state_dict(model.state_dict(), strict=False)
    deeper.norms[-1].load_state_dict(model.norms[-1].state_dict())
    with torch.no_grad():
        if model.config.heads_per_exit:
            deeper.readout_matrix(depth).copy_(model.readout_matrix(depth - 1))
        if new_layer == "identity":
            _silence(deeper)
    return deeper


def _silence(model: BlockwiseLM) -> None:
    """Let the top layer pass on what it gets (see the module)."""
    layer, below = cast(TransformerLayer, model.layers[-1][-1]), cast(TransformerLayer, model.layers[-2][-1])
    layer.attn_out.weight.zero_()
    layer.ffn_out.weight.zero_()
    if model.config.norm == "post":
        layer.attn_norm.weight.fill_(1)
        layer.ffn_norm.weight.copy_(below.ffn_norm.weight)
        below.ffn_norm.weight.fill_(1)
