"""The models of experiments 8 to 11 of seed 001: which depth do tokens need, and who may leave early?

Linear weights start at 0.02 in experiments 8 and 9, at 1 / sqrt(width) in the others, published and corrected: what layer 1 knows
of the last layer's readout depends on it. Published: set-up 1B (a pangram, F9), seed 42.

Corrected: one set of models for experiments 8 and 9, another for 10 and 11, so that what is said of layers and of exits, of
routing and of losses is said of the same models. Every arm trains for the same number of updates; models for the same FLOPs of
training come from the same run, which goes on where updates cost less. Of the looks within each of the two limits, the last of
them at its very end, the best by perplexity on calibration text leaves its weights. They are kept below build/, to be found again.

Cut against the seed: 160 updates on 20,000 characters (8 epochs; of its models on real text the seed's best were after 4 to 14)
and on 500,000.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from offramp.artifacts.artifact import Artifact, create_artifact
from offramp.errors import UserError
from offramp.models.native import BlockwiseLM, ModelConfig
from offramp.systems.confidence_routing import loss_weights, routed_objective
from offramp.systems.ensemble import Ensemble, batch_flops, fit, mean_nll
from offramp.systems.initial_weights import truncated_normal
from offramp.systems.objectives import Objective, from_logits
from studies.common.workers import PROCESSES, SEEDS, Found, run_arms
from studies.common.cache import find, folder
from studies.common.characters import BATCH_SIZE, SIZES_OF, WINDOW, Characters, corrected
from studies.common.results import study_params
from studies.common.text import StudyText
from studies.common.training import Limits, train_corrected

SETTINGS: dict[str, Any] = study_params("depth")
LAYERS, SHALLOW = SETTINGS["layers"], SETTINGS["shallow"]


@dataclass(frozen=True)
class Arm:
    """How a model is trained: a loss variant of ``training.confidence_routing``, or None for its last layer alone."""

    layers: int
    variant: str | None = None

    def objective(self, threshold: float = SETTINGS["threshold"]) -> Objective:
        """Used by its last layer, or where it has a variant as routed after ``SHALLOW`` layers."""
        if self.variant is None:
            return from_logits(lambda model, tokens: model.logits(self.layers - 1, model(tokens)[-1]))
        return routed_objective(loss_weights(self.variant, self.layers, SHALLOW), SHALLOW, threshold)


ARMS = {
    "four_layers": Arm(LAYERS),
    "three_layers": Arm(LAYERS - 1),
    "two_layers": Arm(SHALLOW),
    "routed": Arm(LAYERS, "shallow and deep"),
    "lpt": Arm(LAYERS, "every layer"),
    "routing_aware": Arm(LAYERS, "routing aware"),
}
LOSSES = ("routed", "lpt", "routing_aware")
"""Arms that differ in their loss alone."""
LAYER_ARMS = ("four_layers", "lpt")
"""Of experiments 8 and 9."""
LINEAR_STD: dict[str, float | None] = {"depth": SETTINGS["linear_std"], "depth_routing": None}
"""Where the linear weights of a set of models start, see ``build``: those of experiments 8 and 9, of 10 and 11; by their folder."""
FORMAT = 2
"""Of what is kept beside the weights."""
STARTS = {"four_layers": "", "lpt": "lpt.", "lpt, equal FLOPs": "flops.lpt."}
"""How keys of the studies of layers begin, after the size; equal FLOPs are those of four layers, which need no key of their own."""


def build(vocab_size: int, layers: int, linear_std: float | None = None) -> BlockwiseLM:
    """A model of the seed: post-norm layers, each a block, and one head; linear weights start at ``linear_std`` or 1 / sqrt(width)."""
    width = SETTINGS["width"]
    model = BlockwiseLM(
        ModelConfig(
            vocab_size,
            WINDOW,
            width,
            SETTINGS["heads"],
            SETTINGS["ffn_width"],
            (1,) * layers,
            norm="post",
            tied=False,
        )
    )
    std = 1 / math.sqrt(width) if linear_std is None else linear_std
    truncated_normal(model, std)
    nn.init.trunc_normal_(model.heads[0], std=std)
    return model


# Corrected ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Trained:
    """One arm at one size of text: a model per seed, chosen on calibration text."""

    models: list[BlockwiseLM]
    flops_models: list[BlockwiseLM]
    """The same within the FLOPs that four layers trained on the last exit take, instead of within their updates."""
    curves: list[dict[int, float]]
    """Per seed perplexity on calibration text, as the arm is used, by updates."""
    updates: dict[str, int]
    """Within each limit: equal updates, equal flops."""
    epochs: dict[str, list[float]]
    """Within each limit, until each model was at its best."""


def trained(
    text: StudyText, models: str, arms: Sequence[str], root: Path = Path("."), seeds: Sequence[int] = SEEDS
) -> dict[tuple[str, str], Trained]:
    """By (size, arm), of the set ``models`` (a key of ``LINEAR_STD``), trained where they are not found."""
    jobs = [(text, models, size, arm, root, tuple(seeds)) for size in SIZES_OF[text.corpus] for arm in arms]
    run_arms(
        _make,
        [job for job in jobs if _found(*job) is None],
        PROCESSES,
        cost=lambda _, __, size, arm, *___: SETTINGS["updates"][size] * ARMS[arm].layers,
    )
    return {job[2:4]: _read(_found(*job), job[3]) for job in jobs}


def limited(
    text: StudyText, models: Mapping[tuple[str, str], Trained]
) -> list[tuple[str, StudyText, str, list[BlockwiseLM]]]:
    """The models of ``LAYER_ARMS`` at equal updates, and where that is something else at equal FLOPs: the beginning of their
    keys, the text, its size, one model per seed."""
    jobs = [(f"{size}.{STARTS[arm]}", text, size, made.models) for (size, arm), made in models.items()]
    return jobs + [
        (f"{size}.{STARTS[same]}", text, size, made.flops_models)
        for (size, arm), made in models.items()
        if (same := f"{arm}, equal FLOPs") in STARTS
    ]


def _place(root: Path, corpus: str, models: str, size: str, arm: str) -> Path:
    return folder(root, corpus) / models / f"{size}.{arm}"


def _identity(text: StudyText, models: str, size: str, arm: str, seeds: Sequence[int]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "text": text.sha256,
        "models": models,
        "size": size,
        "arm": arm,
        "settings": SETTINGS,
        "seeds": list(seeds),
    }


def _found(
    text: StudyText, models: str, size: str, arm: str, root: Path, seeds: Sequence[int]
) -> Artifact | None:
    return find(
        _place(root, text.corpus, models, size, arm),
        "ensemble",
        _identity(text, models, size, arm, seeds),
        {},
    )


def _make(text: StudyText, models: str, size: str, arm: str, root: Path, seeds: Sequence[int]) -> None:
    """Train one arm and keep the models of both limits, their curves, numbers of updates and best epochs."""
    data, chosen = corrected(text, size), ARMS[arm]
    std, batch = LINEAR_STD[models], [part[:BATCH_SIZE] for part in data.windows("train")]

    def flops(arm: Arm) -> int:
        return batch_flops(
            Ensemble(lambda seed: build(data.vocab_size, arm.layers), [0]), arm.objective(), *batch
        )

    updates = SETTINGS["updates"][size]
    limits = Limits.of(updates, updates * flops(ARMS["four_layers"]), chosen.objective(), flops(chosen))
    run = train_corrected(
        lambda seed: build(data.vocab_size, chosen.layers, std),
        chosen.objective(),
        data,
        limits,
        SETTINGS["look_every"][size],
        seeds,
    )
    identity, epochs = _identity(text, models, size, arm, seeds), {}
    with create_artifact(_place(root, text.corpus, models, size, arm), "ensemble", identity, {}) as out:
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


def _read(made: Artifact | None, arm: str) -> Trained:
    if made is None:
        raise UserError(f"models of arm {arm} were removed while the study ran; run it again")
    models = {
        name: _members(load_file(made.file(f"{name}.safetensors")), made.meta["vocab_size"], ARMS[arm].layers)
        for name in ("updates", "flops")
    }
    curves = [{int(update): ppl for update, ppl in curve} for curve in made.meta["curves"]]
    return Trained(models["updates"], models["flops"], curves, made.meta["updates"], made.meta["epochs"])


def _members(weights: dict[str, Tensor], vocab_size: int, layers: int) -> list[BlockwiseLM]:
    out = []
    for member in range(len(next(iter(weights.values())))):
        model = build(vocab_size, layers)
        model.load_state_dict({name: weight[member] for name, weight in weights.items()})
        out.append(model.eval())
    return out


def training_values(made: Trained, size: str, arm: str, place: int) -> dict[str, float]:
    """How long the model of the seed at ``place`` was trained, and until its best look, within both limits."""
    return {
        f"{size}.{prefix}{name}": value
        for prefix, limit in (("", "updates"), ("flops.", "flops"))
        for name, value in (
            (f"updates.{arm}", made.updates[limit]),
            (f"best_epoch.{arm}", made.epochs[limit][place]),
        )
    }


# Published ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Run:
    """One training as the seed did it, chosen and reported on the same text (validation)."""

    best: BlockwiseLM
    last: BlockwiseLM
    """Of the last epoch, which the seed analysed and swept."""
    best_epoch: int
    curve: list[float]


def train_as_published(data: Characters, arm: str, seed: int, linear_std: float | None) -> Run:
    """Epochs until ``patience`` of them in a row did not lower the perplexity of the validation text."""
    chosen, rules, best = ARMS[arm], SETTINGS["published"], _Best()
    ensemble = Ensemble(lambda seed: build(data.vocab_size, chosen.layers, linear_std), [seed])
    objective = chosen.objective()

    def look(ensemble: Ensemble) -> Tensor:
        nll = mean_nll(ensemble, objective, *data.windows("validation"))
        best.see(ensemble, float(nll))
        return nll

    (found,) = fit(
        ensemble,
        data.batches([seed]),
        objective,
        look,
        looks=data.epochs(rules["max_epochs"]),
        patience=rules["patience"],
        restore_best=False,
    )
    last = ensemble.member(0)
    ensemble.restore(best.weights)
    return Run(ensemble.member(0).eval(), last.eval(), found.best_look, found.curve)


def published_runs(data: Characters, arms: Sequence[str], seed: int) -> dict[str, Run]:
    """Those of experiments 10 and 11, whose linear weights start at 1 / sqrt(width)."""
    return dict(zip(arms, run_arms(train_as_published, [(data, arm, seed, None) for arm in arms], PROCESSES)))


def evaluated(evaluate: Callable[..., Found], jobs: Sequence[tuple[Any, ...]]) -> list[Found]:
    """``evaluate(*job)`` of every job, a size's models of one arm or one seed."""
    return run_arms(evaluate, jobs, PROCESSES)


class _Best:
    """The weights of the best look so far, beside the last ones that ``fit`` leaves."""

    def __init__(self) -> None:
        self.nll, self.weights = math.inf, {}

    def see(self, ensemble: Ensemble, nll: float) -> None:
        if nll < self.nll:
            self.nll, self.weights = nll, ensemble.snapshot()


def protocol_of(text: StudyText, protocol: str) -> str:
    """The one protocol that this text is for: experiments 8 to 11 were published on the pangram alone.

    UserError if the other one was asked for.
    """
    own = "published" if text.corpus == "pangram" else "corrected"
    if protocol not in (own, "both"):
        remedy = "--corpus pangram" if protocol == "published" else "--corpus sotu or wikitext"
        raise UserError(f"--protocol = {protocol!r} is not one of {text.corpus}; give {remedy}")
    return own


def prefixed(prefix: str, values: dict[str, float]) -> dict[str, float]:
    return {f"{prefix}{name}": value for name, value in values.items()}
