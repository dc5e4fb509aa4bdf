"""Seed 001, experiment 4: does it help to supervise every layer? ``python -m studies.layer_supervision.study --corpus sotu``.

Published: four layers on 20,000 characters, one head for all layers; the losses of the layers summed (sum) or weighted by
depth (weighted), against the last layer's loss alone (standard) and iterated refinement (irt).

Corrected: five seeds at equal updates and at equal FLOPs of training; also the mean of the losses (normalised: is it the larger
loss that helps?), eight layers (standard_8, sum_8, weighted_8), and the losses of the layers on test text, where the seed looked
at training text. Cut against the seed's up to 30 epochs: a fixed number of updates, fewer at eight layers; on 500,000 characters
irt, normalised and eight layers are left out. Writes metrics/studies/layer_supervision.<corpus>.json.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from offramp.systems.deep_supervision import segments_objective
from offramp.systems.ensemble import EVALUATED_TOGETHER, Ensemble
from offramp.systems.iterated import IteratedLM
from offramp.systems.objectives import Objective, block_losses, named
from studies.common.workers import PUBLISHED_SEED, SEEDS, Outcome, both_protocols, study_main
from studies.common.characters import SIZES_OF, Characters, corrected, published_1a
from studies.common.comparison import (
    Compared,
    compared,
    corrected_values,
    differences,
    gains,
    learning_curves,
    limits,
    parameters,
    published_values,
    transformer,
)
from studies.common.results import study_params
from studies.common.text import StudyText
from studies.common.training import train_corrected, train_published

STUDY = "layer_supervision"
SETTINGS: dict[str, Any] = study_params(STUDY)
ARMS = ("standard", "irt", "sum", "weighted", "normalised", "standard_8", "sum_8", "weighted_8")
SMALL_TEXT_ONLY = ("irt", "normalised", "standard_8", "sum_8", "weighted_8")
"""Arms that the larger text does without."""
FLAWS = [
    "F8 iterated refinement makes two updates per batch and runs twice per use, the others once",
    "F19 the best epoch is chosen by the text that is reported; losses by layer are of training text",
]
LAYERS = 4
PASSES = 2
EPOCHS_REPORTED = (1, 5, 10, 15)
"""At which the seed gave the training losses of the layers."""
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


def layers(arm: str) -> int:
    return 8 if arm.endswith("_8") else LAYERS


def build(arm: str, vocab_size: int) -> Callable[[int], nn.Module]:
    """The model of an arm, as initialised in the seed."""
    if arm == "irt":
        return lambda seed: IteratedLM(transformer(LAYERS, vocab_size))
    return lambda seed: transformer(layers(arm), vocab_size)


def objective(arm: str) -> Objective:
    if arm == "irt":
        return segments_objective(PASSES)
    name = arm.removesuffix("_8")
    return named("final" if name == "standard" else name, layers(arm))


class LayerLosses:
    """Mean training losses of the layers in the epochs that the seed reported, while the weights change: a watch of ``fit``."""

    def __init__(self, batches_per_epoch: int):
        self.batches_per_epoch, self.batches = batches_per_epoch, 0
        self.seen: dict[int, list[Tensor]] = {epoch: [] for epoch in EPOCHS_REPORTED}
        """Losses (S, K) of the batches of an epoch."""

    def __call__(self, ensemble: Ensemble, tokens: Tensor, targets: Tensor) -> None:
        epoch = 1 + self.batches // self.batches_per_epoch
        self.batches += 1
        if epoch in self.seen:
            with torch.no_grad():
                self.seen[epoch].append(ensemble(block_losses, tokens, targets))

    def values(self, member: int) -> dict[str, float]:
        """``train_loss.e<epoch>.l<layer>`` of those epochs that were reached."""
        out = {}
        for epoch, found in self.seen.items():
            if len(found) == self.batches_per_epoch:
                means = torch.stack(found).mean(dim=0)[member]
                out |= {f"train_loss.e{epoch}.l{layer + 1}": float(loss) for layer, loss in enumerate(means)}
        return out


def published_arm(text: StudyText, arm: str, settings: dict[str, Any]) -> dict[str, float]:
    """Values of one arm as the seed ran it."""
    data = published_1a(text)
    watch, epochs, patience = None, settings["epochs"], settings["patience"]
    if arm == "sum":  # its losses are wanted to the end of the seed's own run, whenever ours would stop
        watch, epochs, patience = LayerLosses(data.batches_per_epoch), max(EPOCHS_REPORTED), None
    run = train_published(
        build(arm, data.vocab_size), objective(arm), data, epochs, patience, PUBLISHED_SEED, watch=watch
    )
    values = run.values(arm) | {f"parameters.{arm}": parameters(run.ensemble)}
    if arm != "irt":
        values |= {
            f"{name}.{arm}": value
            for name, value in layer_values(run.ensemble, data, "validation")[0].items()
        }
    return values | ({f"{name}.{arm}": value for name, value in watch.values(0).items()} if watch else {})


def layer_values(ensemble: Ensemble, data: Characters, split: str) -> list[dict[str, float]]:
    """By member the losses of the layers on a split, and by how much a layer is at least better than the one below."""
    total = torch.zeros(())
    with torch.no_grad():
        for batch in zip(*(part.split(EVALUATED_TOGETHER) for part in data.windows(split))):
            losses = ensemble(block_losses, *(part.expand(len(ensemble), *part.shape) for part in batch))
            total = total + losses * len(batch[0])
    found = (total / len(data.windows(split)[0])).tolist()
    return [
        {f"layer_loss.l{layer + 1}": loss for layer, loss in enumerate(losses)}
        | {
            "layer_drop": losses[0] - losses[-1],
            "least_step": min(one - two for one, two in itertools.pairwise(losses)),
        }
        for losses in found
    ]


def corrected_arm(
    text: StudyText, size: str, arm: str, settings: dict[str, Any], seeds: Sequence[int]
) -> Compared:
    """One arm on one size of text, all seeds together."""
    data = corrected(text, size)
    updates, every = settings["updates_8" if layers(arm) == 8 else "updates"][size], settings["look_every"]
    watch, at_least = None, 0
    if arm == "sum" and size == "20k":  # for its losses goes on to the last epoch that the seed reported
        watch, at_least = LayerLosses(data.batches_per_epoch), max(EPOCHS_REPORTED) * data.batches_per_epoch
    reference = "standard_8" if layers(arm) == 8 else "standard"
    own = build(arm, data.vocab_size), objective(arm)
    within = limits(*own, data, updates, (build(reference, data.vocab_size), objective(reference)))
    run = train_corrected(*own, data, within, every // own[1].segments, seeds, watch, at_least)
    out = compared(run, within)
    if arm != "irt":
        out.more = layer_values(run.ensemble, data, "test")
    if watch:
        out.more = [values | watch.values(member) for member, values in enumerate(out.more)]
    return out


def _layer_updates(
    text: StudyText, size: str, arm: str, settings: dict[str, Any], seeds: Sequence[int]
) -> float:
    """What an arm costs to train, roughly."""
    return layers(arm) * settings["updates_8" if layers(arm) == 8 else "updates"][size]


def derived(nll: dict[str, float]) -> dict[str, float]:
    """What follows from the losses of all arms."""
    return differences(nll, PAIRS) | gains(
        {arm: value for arm, value in nll.items() if layers(arm) == LAYERS}, "standard"
    )


def run(
    text: StudyText,
    protocol: str,
    arms: Sequence[str],
    settings: dict[str, Any] = SETTINGS,
    seeds: Sequence[int] = tuple(SEEDS),
) -> Outcome:
    """Both protocols on one text; text of one's own has the corrected one alone."""
    outcome, published_jobs, jobs = Outcome(), [], []
    if protocol in ("published", "both") and text.corpus != "own":
        published_jobs = [(text, arm, settings["published"]) for arm in arms]
    if protocol in ("corrected", "both"):
        jobs = [
            (text, size, arm, settings["corrected"], seeds)
            for size in SIZES_OF[text.corpus]
            for arm in arms
            if size != "500k" or arm not in SMALL_TEXT_ONLY
        ]
    published, found = both_protocols(published_arm, published_jobs, corrected_arm, jobs, _layer_updates)
    if published_jobs:
        outcome.published = published_values(published, [arm for _, arm, _ in published_jobs], derived)
    if jobs:
        by_size: dict[str, dict[str, Compared]] = {size: {} for size in SIZES_OF[text.corpus]}
        for (_, size, arm, *_), one in zip(jobs, found):
            by_size[size][arm] = one
        outcome.corrected = corrected_values(by_size, len(seeds), derived)
        outcome.figures["learning_curves"] = learning_curves(by_size)
    return outcome


main = study_main(STUDY, __doc__.splitlines()[0], ARMS, FLAWS, run)

if __name__ == "__main__":
    main()
