"""Seed 001, experiment 8: what does each of four layers contribute, and do hard tokens need more of them?

``python -m studies.layer_contribution.study --corpus pangram`` reruns it as published, ``--corpus sotu`` (or wikitext, or text
of your own) as corrected: real text, five seeds, the weights that calibration text chose, all figures on test text. Arms: four
layers trained on the last exit, as the seed's, and on every layer (LPT), where the head knows each of them: after as many
updates, and under ``flops.`` after as many FLOPs of training as the other arm's.

Classes of tokens come three times: by the model's own final loss, as published (F13); by what the models of the other seeds
lose there, which shares no noise with the model that is looked at; and by its own first-layer loss, which errs the other way.
What a layer contributes is asked twice, too: by the length of its step (F12), and by the loss without it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from offramp.models.native import BlockwiseLM
from studies.common.workers import PUBLISHED_SEED, Outcome, study_main
from studies.common.characters import SIZES_OF, corrected, published_1b
from studies.common.curves import panels_figure
from studies.common.depth import (
    LAYER_ARMS,
    SETTINGS,
    STARTS,
    evaluated,
    limited,
    prefixed,
    protocol_of,
    train_as_published,
    trained,
)
from studies.common.results import over_seeds
from studies.common.text import StudyText
from studies.measures.layer_contribution import (
    CLASSES,
    QUANTILES,
    LayerStatistics,
    class_means,
    classes,
    consensus,
    distinct_contexts,
    improvement,
    layer_statistics,
    losses_without,
)

FLAWS = [
    "F9 train and validation text are two repeated sentences, not WikiText-2",
    "F10 the weights are those of the last, overfitted epoch, not of the best one",
    "F12 behind a post-norm every state has the same length, so a step's length says how far the direction turned; that of the "
    "first layer, from an embedding near zero, is the norm itself",
    "F13 tokens are classed by their final loss and then compared by how it changes towards the final layer",
    "F16 the validation text repeats itself every 36 characters: its tokens are a few dozen different ones",
]
CONTEXT = 16
"""Characters that tell two places of a text apart, for counting how many there are."""
GROUPINGS = {
    "": "by the model's own final loss",
    "others.": "by the loss of the other seeds' models",
    "first.": "by its own loss at layer 1",
}


def class_values(found: LayerStatistics, difficulty: np.ndarray) -> dict[str, float]:
    """Mean loss and step by class and layer, counted from 1; the loss that depth takes off, in nats and as a share."""
    of_class = classes(difficulty)
    loss, step = class_means(found.loss, of_class), class_means(found.step, of_class)
    gain, relative = loss[0] - loss[-1], improvement(loss)
    out = {
        "gain.easy_minus_hard": gain[0] - gain[2],
        "improvement.easy_minus_hard": relative[0] - relative[2],
    }
    for number, name in enumerate(CLASSES):
        out |= {
            f"share.{name}": (of_class == number).mean(),
            f"gain.{name}": gain[number],
            f"improvement.{name}": relative[number],
        }
        out |= {f"loss.{name}.{layer}": value for layer, value in enumerate(loss[:, number], 1)}
        out |= {f"norm.{name}.{layer}": value for layer, value in enumerate(step[:, number], 1)}
    return {key: float(value) for key, value in out.items()}


def model_values(found: LayerStatistics, without: np.ndarray) -> dict[str, float]:
    """All that one model says by itself; ``without`` as ``losses_without`` gives it."""
    easy, hard = np.quantile(found.loss[-1], QUANTILES)
    step, needed = found.step.mean(1), (without - found.loss[-1]).mean(1)
    out = class_values(found, found.loss[-1]) | prefixed("first.", class_values(found, found.loss[0]))
    out |= {
        "threshold.easy": easy,
        "threshold.hard": hard,
        "ppl": np.exp(found.loss[-1].mean(dtype=np.float64)),
        "gain.all": found.loss[0].mean() - found.loss[-1].mean(),
        "step_spread.1": found.step[0].std() / step[0],
        "norm.first_minus_largest_other": step[0] - step[1:].max(),
        "needed.first_minus_largest_other": needed[0] - needed[1:].max(),
    }
    for layer, (length, turn, loss) in enumerate(zip(step, found.turn.mean(1), needed), 1):
        out |= {f"norm.all.{layer}": length, f"turn.{layer}": turn, f"needed.{layer}": loss}
    return {key: float(value) for key, value in out.items()}


def run_published() -> Outcome:
    data = published_1b()
    run = train_as_published(data, "four_layers", PUBLISHED_SEED, SETTINGS["linear_std"])
    tokens, targets = data.windows("validation")
    found = layer_statistics(run.last, tokens, targets)
    values = model_values(found, losses_without(run.last, tokens, targets))
    values |= {
        "best_ppl": min(run.curve),
        "best_epoch": run.best_epoch,
        "contexts": distinct_contexts(tokens.numpy(), targets.numpy(), CONTEXT),
    }
    return Outcome(
        values, None, {"losses": loss_figure({"the pangram, classes by final loss": [values]}, {"": ""})}
    )


def run_corrected(text: StudyText, arms: list[str], root: Path = Path(".")) -> Outcome:
    models = trained(text, "depth", arms, root)
    seeds: list[dict[str, float]] = []
    jobs = limited(text, models)
    for (start, *_), found in zip(jobs, evaluated(arm_values, [job for _, *job in jobs])):
        seeds = seeds or [{} for _ in found]
        for values, more in zip(seeds, found):
            values |= prefixed(start, more)
    return Outcome(None, seeds, figures(seeds, SIZES_OF[text.corpus], arms))


def arm_values(text: StudyText, size: str, models: list[BlockwiseLM]) -> list[dict[str, float]]:
    """Per seed; a token's difficulty for one model is the mean loss of the others there."""
    tokens, targets = corrected(text, size).windows("test")
    statistics = [layer_statistics(model, tokens, targets) for model in models]
    last = [found.loss[-1] for found in statistics]
    return [
        model_values(found, losses_without(model, tokens, targets))
        | prefixed("others.", class_values(found, consensus(last, own)))
        for own, (model, found) in enumerate(zip(models, statistics))
    ]


def figures(seeds: list[dict[str, float]], sizes: tuple[str, ...], arms: list[str]) -> dict[str, Any]:
    """One plot, of the largest text and the seed's arm, and a table of what depth takes off."""
    out = {}
    if "four_layers" in arms:
        out["losses"] = loss_figure(
            dict.fromkeys([f"classes {GROUPINGS[''][3:]}", f"classes {GROUPINGS['others.'][3:]}"], seeds),
            dict(zip((f"classes {GROUPINGS[key][3:]}" for key in ("", "others.")), ("", "others."))),
            f"{sizes[-1]}.",
        )
    means = over_seeds(seeds)
    rows = []
    for size in sizes:
        for arm, start in (
            (arm, f"{size}.{start}") for arm, start in STARTS.items() if arm.split(",")[0] in arms
        ):
            for grouping, words in GROUPINGS.items():
                cells = [means[f"{start}{grouping}gain.{name}"] for name in CLASSES]
                rows.append(
                    [
                        size,
                        arm.replace("_", " "),
                        words,
                        *([cell["value"], cell["low"], cell["high"]] for cell in cells),
                    ]
                )
    out["gains"] = {
        "title": "Nats that the last layer takes off the first layer's loss, by class of token",
        "note": "Test text; mean and 95 % t interval over seeds. Classes by final loss must improve if easy.",
        "columns": ["text", "trained on", "classes", *CLASSES],
        "rows": rows,
    }
    return out


def loss_figure(
    panels: Mapping[str, list[dict[str, float]]], groupings: Mapping[str, str], size: str = ""
) -> dict[str, Any]:
    """Loss by layer and class; one panel per way to class tokens."""
    layers = range(1, SETTINGS["layers"] + 1)
    curves = {
        panel: {
            name: [
                {layer: values[f"{size}{groupings.get(panel, '')}loss.{name}.{layer}"] for layer in layers}
                for values in seeds
            ]
            for name in CLASSES
        }
        for panel, seeds in panels.items()
    }
    return panels_figure(
        "Loss by layer and class of token",
        curves,
        "classes",
        "layer",
        "loss",
        "Logit lens: the last layer's readout on every layer, in nats.",
    )


def run(text: StudyText, protocol: str, arms: list[str]) -> Outcome:
    return run_published() if protocol_of(text, protocol) == "published" else run_corrected(text, arms)


main = study_main(
    "layer_contribution", __doc__.splitlines()[0], LAYER_ARMS, FLAWS, run, ("pangram", "sotu", "wikitext")
)

if __name__ == "__main__":
    main()
