"""The models of experiments 8 to 11 of the report character-systems: which depth do tokens need, and who
may leave early?

They are transformers of post-norm layers, each layer a block, with one head for all. Linear weights start
at a standard deviation of 0.02 in experiments 8 and 9 (use "layers"), of 1 / sqrt(width) in experiments 10
and 11 (use "routing"), published and corrected: what layer 1 knows of the last layer's readout depends on
it. Published: on the repeated pangram that the report took for WikiText-2.

Corrected: one set of models for each use, so that what is said of layers and of exits, of routing and of
losses is said of the same models. Every arm trains for the same number of updates; models for the same
FLOPs of training come from the same run, which goes on where updates cost less. Of the looks within each of
the two limits, the last of them at its very end, the best by perplexity on calibration text leaves its
weights. Models are kept in a cache, to be found again by what they were made from.

Cut against the report: 160 updates on 20,000 characters (8 epochs; of its models on real text the best were
after 4 to 14) and on 500,000.

Shapes: S random seeds, B windows of a batch, T characters of a window.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from offramp.artifacts.artifact import Artifact, create_artifact
from offramp.errors import UserError
from offramp.models.native import BlockwiseLM, ModelConfig
from offramp.systems.confidence_routing import loss_weights, routed_objective
from offramp.systems.ensemble import Ensemble, Weights, batch_flops, fit, mean_nll
from offramp.systems.initial_weights import truncated_normal
from offramp.systems.objectives import Objective, from_logits
from studies.common.cache import find, identity
from studies.common.characters import BATCH_SIZE, WINDOW, Characters, Sizes, corrected_splits
from studies.common.settings import Settings
from studies.common.text import StudyText
from studies.common.training import Limits, PublishedTraining, train_corrected
from studies.common.workers import run_arms

KIND = "ensemble"
"""Of the artifacts in which trained models are kept."""

Use = Literal["layers", "routing"]
"""What a set of models is for: experiments 8 and 9, or 10 and 11."""


class LayeredModels(Settings):
    """The section layered_models of common/settings.yaml."""

    layers: int
    shallow: int
    """Layers below the shallow exit."""
    width: int
    heads: int
    ffn_width: int
    threshold: float
    """Of the confidence with which a token leaves, as published."""
    linear_std: float
    """Where linear weights start in the use "layers"."""
    published: PublishedTraining
    updates: dict[str, int]
    """By size of the text."""
    look_every: dict[str, int]
    """Updates between two looks at the calibration text, by size of the text."""

    def start_std(self, use: Use) -> float:
        """Standard deviation of the linear weights before training."""
        return self.linear_std if use == "layers" else 1 / math.sqrt(self.width)


SOFT = "soft"
"""Of the variants of a loss: that of the report's soft routing."""


@dataclass(frozen=True)
class Arm:
    """How a model is trained: by a loss of ``offramp.systems.confidence_routing``, by ``SOFT``, or where that
    is None on its last layer alone."""

    layers: int
    variant: str | None = None

    def objective(self, models: LayeredModels) -> Objective:
        """Used by its last layer, or where it has a variant as routed after the shallow exit."""
        if self.variant == SOFT:
            return soft_objective(models.shallow)
        if self.variant is None:
            return from_logits(lambda model, tokens: model.logits(self.layers - 1, model(tokens)[-1]))
        weights = loss_weights(self.variant, self.layers, models.shallow)
        return routed_objective(weights, models.shallow, models.threshold)


def soft_objective(shallow: int) -> Objective:
    """Soft routing as the report describes and rejects it: one loss of a mean of both exits' logits, the
    shallow one's weight being its own confidence."""

    def logits(model: BlockwiseLM, tokens: Tensor) -> Tensor:
        states = model(tokens)
        early = model.logits(shallow - 1, states[shallow - 1])
        weight = early.softmax(-1).amax(-1, keepdim=True)
        return weight * early + (1 - weight) * model.logits(len(states) - 1, states[-1])

    return from_logits(logits)


LAYER_ARMS = ("four_layers", "lpt")
"""Of experiments 8 and 9."""
LOSS_ARMS = ("routed", "lpt", "routing_aware")
"""Arms that differ in their loss alone."""


def arm_of(name: str, models: LayeredModels) -> Arm:
    """The arm of that name, of all four experiments."""
    arms = {
        "four_layers": Arm(models.layers),
        "three_layers": Arm(models.layers - 1),
        "two_layers": Arm(models.shallow),
        "routed": Arm(models.layers, "shallow and deep"),
        "soft": Arm(models.layers, SOFT),
        "lpt": Arm(models.layers, "every layer"),
        "routing_aware": Arm(models.layers, "routing aware"),
    }
    return arms[name]


def build(vocab_size: int, layers: int, models: LayeredModels, std: float) -> BlockwiseLM:
    """A model of the report, whose linear weights start at ``std``."""
    model = BlockwiseLM(
        ModelConfig(
            vocab_size,
            WINDOW,
            models.width,
            models.heads,
            models.ffn_width,
            (1,) * layers,
            norm="post",
            tied=False,
        )
    )
    truncated_normal(model, std)
    nn.init.trunc_normal_(model.heads[0], std=std)
    return model


# Corrected --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """One arm at one size of text: a model per random seed, chosen on calibration text."""

    models: list[BlockwiseLM]
    flops_models: list[BlockwiseLM]
    """The same within the FLOPs that four layers trained on the last exit take, instead of within their
    updates."""
    curves: list[dict[int, float]]
    """Perplexity on calibration text, as the arm is used, by updates; one per random seed."""
    updates: dict[str, int]
    """Within each limit: equal updates, equal flops."""
    epochs: dict[str, list[float]]
    """Within each limit, until each model was at its best."""


@dataclass(frozen=True)
class Recipe:
    """What the models of one arm at one size of text are made from, and where they are kept."""

    use: Use
    size: str
    arm: str
    models: LayeredModels
    data: Characters
    seeds: tuple[int, ...]
    path: Path
    identity: dict[str, Any]
    """What the models are known by. It holds the digest of the code, which takes a while to compute: worker
    processes are given it."""

    @property
    def kept(self) -> Artifact | None:
        """The models, if they are there and were made from the same."""
        return find(self.path, KIND, self.identity, {})


def trained(
    text: StudyText,
    use: Use,
    arms: Sequence[str],
    models: LayeredModels,
    sizes: Sizes,
    *,
    seeds: Sequence[int],
    processes: int,
    cache: Path,
) -> dict[tuple[str, str], Trained]:
    """Models by size of the text and arm, trained where they are not found below ``cache``."""
    recipes = []
    for size in sizes.names(text.corpus):
        data = corrected_splits(text, size, sizes)
        for arm in arms:
            known = identity(
                __name__,
                text=text.sha256,
                characters=sizes.corrected.get(size),
                use=use,
                size=size,
                arm=arm,
                models=models.model_dump(),
                seeds=list(seeds),
            )
            path = cache / "layered_models" / use / f"{size}.{arm}"
            recipes.append(Recipe(use, size, arm, models, data, tuple(seeds), path, known))
    missing = [(recipe,) for recipe in recipes if recipe.kept is None]
    run_arms(make, missing, processes, cost=_cost)
    return {(recipe.size, recipe.arm): _read(recipe) for recipe in recipes}


def _cost(recipe: Recipe) -> float:
    return recipe.models.updates[recipe.size] * arm_of(recipe.arm, recipe.models).layers


def update_flops(arm: str, data: Characters, models: LayeredModels) -> int:
    """FLOPs of the matrix products of one update of that arm, on a batch of the training text."""
    one, batch = arm_of(arm, models), [part[:BATCH_SIZE] for part in data.windows("train")]
    members = Ensemble(lambda seed: build(data.vocab_size, one.layers, models, models.linear_std), [0])
    return batch_flops(members, one.objective(models), *batch)


def make(recipe: Recipe) -> None:
    """Train one arm and keep the models of both limits, their curves, numbers of updates and best epochs."""
    models, data, arm = recipe.models, recipe.data, arm_of(recipe.arm, recipe.models)
    std, updates = models.start_std(recipe.use), models.updates[recipe.size]
    whole = updates * update_flops("four_layers", data, models)
    limits = Limits.of(updates, whole, arm.objective(models), update_flops(recipe.arm, data, models))
    run = train_corrected(
        lambda seed: build(data.vocab_size, arm.layers, models, std),
        arm.objective(models),
        data,
        limits,
        look_every=models.look_every[recipe.size],
        seeds=recipe.seeds,
    )
    epochs = {}
    with create_artifact(recipe.path, KIND, recipe.identity, {}) as out:
        for name, within in asdict(limits).items():
            epochs[name] = [batches / data.batches_per_epoch for batches in run.choose(within)]
            weights = {key: value.contiguous() for key, value in run.ensemble.snapshot().items()}
            save_file(weights, out.path / f"{name}.safetensors")
        out.meta.update(
            updates=asdict(limits),
            epochs=epochs,
            vocab_size=data.vocab_size,
            curves=[sorted(curve.items()) for curve in run.curves()],
        )


def _read(recipe: Recipe) -> Trained:
    kept = recipe.kept
    if kept is None:
        raise UserError(f"models of arm {recipe.arm} were removed while the study ran; run it again")
    members = {
        name: _members(load_file(kept.file(f"{name}.safetensors")), kept.meta["vocab_size"], recipe)
        for name in ("updates", "flops")
    }
    curves = [{int(update): ppl for update, ppl in curve} for curve in kept.meta["curves"]]
    return Trained(members["updates"], members["flops"], curves, kept.meta["updates"], kept.meta["epochs"])


def _members(weights: dict[str, Tensor], vocab_size: int, recipe: Recipe) -> list[BlockwiseLM]:
    """A model per random seed, of weights (S, ...)."""
    models, members = recipe.models, []
    layers, std = arm_of(recipe.arm, models).layers, models.start_std(recipe.use)
    for member in range(len(next(iter(weights.values())))):
        model = build(vocab_size, layers, models, std)
        model.load_state_dict({name: weight[member] for name, weight in weights.items()})
        members.append(model.eval())
    return members


def training_values(result: Trained, size: str, arm: str, place: int) -> dict[str, float]:
    """How long the model of the random seed at ``place`` was trained, and until its best look, within both
    limits."""
    return {
        f"{size}.{prefix}{name}": value
        for prefix, limit in (("", "updates"), ("flops.", "flops"))
        for name, value in (
            (f"updates.{arm}", result.updates[limit]),
            (f"best_epoch.{arm}", result.epochs[limit][place]),
        )
    }


STARTS = {"four_layers": "", "lpt": "lpt.", "lpt, equal FLOPs": "flops.lpt."}
"""How keys of the studies of layers begin, after the size; equal FLOPs are those of four layers, which need
no key of their own."""


@dataclass(frozen=True)
class Group:
    """Models of one arm under one limit, in the studies of layers."""

    size: str
    start: str
    """How their keys begin, after the size: a value of ``STARTS``."""
    models: list[BlockwiseLM]
    """One per random seed."""


def groups_of(results: Mapping[tuple[str, str], Trained]) -> list[Group]:
    """The models of ``LAYER_ARMS`` at equal updates, and where that is something else at equal FLOPs."""
    groups = [Group(size, STARTS[arm], result.models) for (size, arm), result in results.items()]
    return groups + [
        Group(size, STARTS[f"{arm}, equal FLOPs"], result.flops_models)
        for (size, arm), result in results.items()
        if f"{arm}, equal FLOPs" in STARTS
    ]


# Published --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PublishedModels:
    """One training as the report did it, chosen and reported on the same text (validation)."""

    best: BlockwiseLM
    last: BlockwiseLM
    """Of the last epoch, which the report analysed and swept."""
    best_epoch: int
    curve: list[float]
    """Perplexity of the validation text by epoch."""


def train_as_published(
    data: Characters, arm: str, seed: int, models: LayeredModels, use: Use
) -> PublishedModels:
    """Epochs until ``patience`` of them in a row did not lower the perplexity of the validation text."""
    chosen, how, best = arm_of(arm, models), models.published, _Best()
    std = models.start_std(use)
    ensemble = Ensemble(lambda seed: build(data.vocab_size, chosen.layers, models, std), [seed])
    objective = chosen.objective(models)

    def look(members: Ensemble) -> Tensor:
        nll = mean_nll(members, objective, *data.windows("validation"))
        best.see(members, float(nll))
        return nll

    (fitted,) = fit(
        ensemble,
        data.batches([seed]),
        objective,
        look,
        looks=data.epochs(how.epochs),
        patience=how.patience,
        restore_best=False,
    )
    last = ensemble.member(0)
    ensemble.restore(best.weights)
    return PublishedModels(ensemble.member(0).eval(), last.eval(), fitted.best_look, fitted.curve)


def published_models(
    data: Characters, arms: Sequence[str], seed: int, models: LayeredModels, processes: int
) -> dict[str, PublishedModels]:
    """Those of experiments 10 and 11, by arm."""
    jobs = [(data, arm, seed, models, "routing") for arm in arms]
    return dict(zip(arms, run_arms(train_as_published, jobs, processes)))


class _Best:
    """The weights of the best look so far, beside the last ones that ``fit`` leaves."""

    def __init__(self) -> None:
        self.nll = math.inf
        self.weights: Weights = {}

    def see(self, ensemble: Ensemble, nll: float) -> None:
        if nll < self.nll:
            self.nll, self.weights = nll, ensemble.snapshot()


def prefixed(prefix: str, values: Mapping[str, float]) -> dict[str, float]:
    """The same values under keys that begin with ``prefix``."""
    return {f"{prefix}{name}": value for name, value in values.items()}
