"""Does it help to supervise every layer? Experiment 4 of the report character-systems.

    python -m studies layer_supervision --corpus sotu

Published: four layers on 20,000 characters, one head for all layers; the losses of the layers summed (sum) or
weighted by depth (weighted), against the last layer's loss alone (standard) and iterated refinement (irt).

Corrected: five random seeds at equal updates and at equal FLOPs of training; also the mean of the losses
(normalised: is it the larger loss that helps?), eight layers (standard_8, sum_8, weighted_8), and the losses
of the layers on test text, where the report looked at training text. Cut against the report's up to 30
epochs: a fixed number of updates, fewer at eight layers; on 500,000 characters irt, normalised and eight
layers are left out.

    passage_ppl.ARM                    perplexity of the passage that the report reports on, which chose
                                       nothing
    train_loss.e<epoch>.l<layer>.ARM   training losses of the layers
    train_drop.e<epoch>.ARM            by how much the last layer's is below the first one's
    train_step.e<epoch>.ARM            by how much a layer's is at least below that of the layer before
    layer_loss, layer_drop, least_step the same of text that is not learnt from
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from offramp.systems.deep_supervision import segments_objective
from offramp.systems.ensemble import EVALUATED_TOGETHER, Ensemble
from offramp.systems.iterated import IteratedLM
from offramp.systems.objectives import Objective, block_losses, named
from studies.common.characters import Characters, Sizes, corrected_splits, published_1a
from studies.common.comparison import (
    Compared,
    compared,
    corrected_outcome,
    differences,
    gains,
    limits,
    parameters,
    passage_ppl,
    published_outcome,
    transformer,
)
from studies.common.settings import Settings
from studies.common.study import Job, Outcome
from studies.common.training import PublishedTraining, train_corrected, train_published
from studies.common.workers import run_arms

ARMS = ("standard", "irt", "sum", "weighted", "normalised", "standard_8", "sum_8", "weighted_8")
SMALL_TEXT_ONLY = ("irt", "normalised", "standard_8", "sum_8", "weighted_8")
"""Arms that the larger text does without."""
LAYERS = 4
PASSES = 2
PAIRS = (
    ("sum", "standard"),
    ("weighted", "standard"),
    ("weighted", "sum"),
    ("normalised", "sum"),
    ("normalised", "standard"),
    ("irt", "standard"),
    ("irt", "sum"),
    ("sum_8", "standard_8"),
    ("weighted_8", "standard_8"),
    ("weighted_8", "sum_8"),
)


class PublishedSettings(PublishedTraining):
    """Of the published protocol."""

    epochs_reported: tuple[int, ...]
    """At which the report gives the training losses of the layers."""


class CorrectedTraining(Settings):
    """How long the corrected protocol trains."""

    updates: dict[str, int]
    """By size of the text."""
    updates_8: dict[str, int]
    """Of models of eight layers."""
    look_every: int
    """Updates between two looks at the calibration text."""

    epochs_reported: tuple[int, ...]
    """At which the training losses of the layers are given, as in the report."""

    def updates_of(self, arm: str, size: str) -> int:
        return (self.updates_8 if layers(arm) == 8 else self.updates)[size]


def published(job: Job) -> Outcome:
    """Every arm as the report ran it, with one random seed."""
    data = published_1a(job.text, Sizes.of(job.shared["characters"]))
    how = PublishedSettings.of(job.settings["published"])
    jobs = [(data, arm, how, job.seeds[0]) for arm in job.arms]
    return published_outcome(dict(zip(job.arms, run_arms(published_arm, jobs, job.processes))), derived)


def corrected(job: Job) -> Outcome:
    """Every arm on every size of the text that it is for, at equal updates and at equal FLOPs."""
    sizes, how = Sizes.of(job.shared["characters"]), CorrectedTraining.of(job.settings["corrected"])
    texts = {size: corrected_splits(job.text, size, sizes) for size in sizes.names(job.text.corpus)}
    places = [
        (size, arm) for size in texts for arm in job.arms if size != "500k" or arm not in SMALL_TEXT_ONLY
    ]
    jobs = [
        (
            texts[size],
            arm,
            how.updates_of(arm, size),
            how.look_every,
            job.seeds,
            how.epochs_reported if arm == "sum" and size == "20k" else (),
            size == "20k",
        )
        for size, arm in places
    ]
    results = run_arms(corrected_arm, jobs, job.processes, cost=_layer_updates)
    return corrected_outcome(dict(zip(places, results)), len(job.seeds), derived)


def published_arm(data: Characters, arm: str, how: PublishedSettings, seed: int) -> dict[str, float]:
    """Values of one arm as the report ran it."""
    watch, epochs, patience = None, how.epochs, how.patience
    if arm == "sum":  # its losses are wanted to the end of the report's own run, whenever ours would stop
        watch, epochs, patience = (
            LayerLosses(how.epochs_reported, data.batches_per_epoch),
            max(how.epochs_reported),
            None,
        )
    run = train_published(
        build(arm, data.vocab_size),
        objective(arm),
        data,
        epochs=epochs,
        patience=patience,
        seed=seed,
        watch=watch,
    )
    values = run.values(arm) | {f"parameters.{arm}": parameters(run.ensemble)}
    if arm != "irt":
        values |= {
            f"{name}.{arm}": value
            for name, value in layer_values(run.ensemble, data, "validation")[0].items()
        }
    return values | ({f"{name}.{arm}": value for name, value in watch.values(0).items()} if watch else {})


def corrected_arm(
    data: Characters,
    arm: str,
    updates: int,
    look_every: int,
    seeds: tuple[int, ...],
    epochs_reported: tuple[int, ...],
    passage: bool,
) -> Compared:
    """One arm on one size of text, all random seeds together; ``look_every`` is in updates, ``passage``:
    whether the calibration text is the passage of the report.

    Training goes on to the last of ``epochs_reported``, for the training losses of the layers in those epochs
    alone.
    """
    watch, at_least = None, 0
    if epochs_reported:
        watch = LayerLosses(epochs_reported, data.batches_per_epoch)
        at_least = max(epochs_reported) * data.batches_per_epoch
    reference = "standard_8" if layers(arm) == 8 else "standard"
    model = build(arm, data.vocab_size), objective(arm)
    within = limits(*model, data, updates, (build(reference, data.vocab_size), objective(reference)))
    run = train_corrected(
        *model,
        data,
        within,
        look_every=look_every // model[1].segments,
        seeds=seeds,
        watch=watch,
        at_least=at_least,
    )
    more: list[dict[str, float]] = passage_ppl(run, within.updates) if passage else [{} for _ in seeds]
    result = compared(run, within)
    if arm != "irt":
        more = [one | other for one, other in zip(more, layer_values(run.ensemble, data, "test"))]
    if watch:
        more = [values | watch.values(member) for member, values in enumerate(more)]
    result.more = more
    return result


def _layer_updates(data: Characters, arm: str, updates: int, *_: object) -> float:
    """What an arm costs to train, roughly."""
    return layers(arm) * updates


def layers(arm: str) -> int:
    return 8 if arm.endswith("_8") else LAYERS


def build(arm: str, vocab_size: int) -> Callable[[int], nn.Module]:
    """The model of an arm, as initialised in the report."""
    if arm == "irt":
        return lambda seed: IteratedLM(transformer(LAYERS, vocab_size))
    return lambda seed: transformer(layers(arm), vocab_size)


def objective(arm: str) -> Objective:
    if arm == "irt":
        return segments_objective(PASSES)
    name = arm.removesuffix("_8")
    return named("final" if name == "standard" else name, layers(arm))


class LayerLosses:
    """Mean training losses of the layers in the epochs that the report gives, while the weights change: a
    watch of ``fit``."""

    def __init__(self, epochs: Sequence[int], batches_per_epoch: int):
        self.batches_per_epoch, self.batches = batches_per_epoch, 0
        self.seen: dict[int, list[Tensor]] = {epoch: [] for epoch in epochs}
        """Losses (S, K) of the batches of an epoch."""

    def __call__(self, ensemble: Ensemble, tokens: Tensor, targets: Tensor) -> None:
        epoch = 1 + self.batches // self.batches_per_epoch
        self.batches += 1
        if epoch in self.seen:
            with torch.no_grad():
                self.seen[epoch].append(ensemble(block_losses, tokens, targets))

    def values(self, member: int) -> dict[str, float]:
        """``train_loss.e<epoch>.l<layer>``, ``train_drop.e<epoch>`` and ``train_step.e<epoch>`` of those
        epochs that were reached."""
        out: dict[str, float] = {}
        for epoch, losses in self.seen.items():
            if len(losses) == self.batches_per_epoch:
                means = torch.stack(losses).mean(dim=0)[member].tolist()
                out |= {f"train_loss.e{epoch}.l{layer + 1}": loss for layer, loss in enumerate(means)}
                out |= {f"train_drop.e{epoch}": means[0] - means[-1], f"train_step.e{epoch}": least(means)}
        return out


def layer_values(ensemble: Ensemble, data: Characters, split: str) -> list[dict[str, float]]:
    """By member the losses of the layers on a split, and by how much a layer is at least better than the one
    below."""
    total = torch.zeros(())
    with torch.no_grad():
        for batch in zip(*(part.split(EVALUATED_TOGETHER) for part in data.windows(split))):
            losses = ensemble(block_losses, *(part.expand(len(ensemble), *part.shape) for part in batch))
            total = total + losses * len(batch[0])
    means = (total / len(data.windows(split)[0])).tolist()
    return [
        {f"layer_loss.l{layer + 1}": loss for layer, loss in enumerate(losses)}
        | {
            "layer_drop": losses[0] - losses[-1],
            "least_step": least(losses),
        }
        for losses in means
    ]


def least(losses: Sequence[float]) -> float:
    """By how much a layer is at least better than the one below."""
    return min(one - two for one, two in itertools.pairwise(losses))


def derived(nll: dict[str, float]) -> dict[str, float]:
    """What follows from the losses of all arms."""
    return differences(nll, PAIRS) | gains(
        {arm: value for arm, value in nll.items() if layers(arm) == LAYERS}, "standard"
    )
