"""What does each of four layers contribute, and do hard tokens need more of them? (Report character-systems,
experiment 8.)

Published: four layers trained on the last exit, on a repeated pangram, by the weights of the last epoch.
Corrected: real text, five random seeds, the weights that calibration text chose, all figures on test text.
Arms: four layers trained on the last exit, as the report's, and on every layer (lpt), where the head knows
each of them: after as many updates, and under ``flops.`` after as many FLOPs of training as the other
arm's. The cut in scale is that of ``studies.common.layered_models``.

Classes of tokens come three times: by the model's own final loss, as published, which must show what it
shows; by what the models of the other random seeds lose there, which shares no noise of training with the
model that is looked at, though the same next character; and by its own first-layer loss, which errs the
other way. What a layer contributes is asked twice, too: by the length of its step, and by the loss without
it. What kind of tokens the classes hold is asked of all three: ``unseen`` patterns, ``likeliest`` characters,
and nats that a longer context takes off.

Shapes: L layers, N tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from offramp.models.native import BlockwiseLM
from studies.common.characters import Characters, Sizes, corrected_splits, published_1b
from studies.common.curves import panels_figure
from studies.common.early_exit import Windows
from studies.common.layer_statistics import LayerStatistics, distinct_contexts, layer_statistics
from studies.common.layered_models import (
    LAYER_ARMS,
    STARTS,
    LayeredModels,
    groups_of,
    prefixed,
    train_as_published,
    trained,
)
from studies.common.results import over_seeds
from studies.common.study import Job, Outcome
from studies.common.workers import run_arms
from studies.layer_contribution.classes import (
    CLASSES,
    QUANTILES,
    class_means,
    classes,
    consensus,
    cut_context,
    improvement,
    likeliest,
    losses_without,
    unseen,
)

ARMS = LAYER_ARMS
PUBLISHED_ARM = "four_layers"
CONTEXT = 16
"""Characters that tell two places of a text apart, for counting how many there are."""
GROUPINGS = {
    "": "by the model's own final loss",
    "others.": "by the loss of the other seeds' models",
    "first.": "by its own loss at layer 1",
}
"""How tokens are classed, by the beginning of the keys."""

Traits = Mapping[str, np.ndarray]
"""What a token is like, (N,) by name."""


# Published --------------------------------------------------------------------------------------------------


def published(job: Job) -> Outcome:
    """The report's model on the pangram."""
    if PUBLISHED_ARM not in job.arms:
        return Outcome([])
    models, sizes = _given(job)
    data = published_1b(sizes)
    run = train_as_published(data, PUBLISHED_ARM, job.seeds[0], models, "layers")
    tokens, targets = data.windows("validation")
    statistics = layer_statistics(run.last, tokens, targets)
    values = model_values(
        statistics,
        losses_without(run.last, tokens, targets),
        traits(data, "validation", run.last, statistics),
    )
    values |= {
        "best_ppl": min(run.curve),
        "best_epoch": run.best_epoch,
        "contexts": distinct_contexts(tokens.numpy(), targets.numpy(), CONTEXT),
    }
    panels = {"the pangram, classes by final loss": ""}
    return Outcome([values], {"losses": loss_figure([values], panels, models.layers)})


# Corrected --------------------------------------------------------------------------------------------------


def corrected(job: Job) -> Outcome:
    """Models of every random seed on real text."""
    models, sizes = _given(job)
    results = trained(
        job.text,
        "layers",
        job.arms,
        models,
        sizes,
        seeds=job.seeds,
        processes=job.processes,
        cache=job.cache,
    )
    names = sizes.names(job.text.corpus)
    data = {size: corrected_splits(job.text, size, sizes) for size in names}
    groups = groups_of(results)
    rows: list[dict[str, float]] = [{} for _ in job.seeds]
    measured = run_arms(arm_values, [(data[group.size], group.models) for group in groups], job.processes)
    for group, of_seeds in zip(groups, measured):
        for row, values in zip(rows, of_seeds):
            row |= prefixed(f"{group.size}.{group.start}", values)
    return Outcome(rows, figures(rows, names, job.arms, models.layers) if len(rows) > 1 else {})


def arm_values(data: Characters, models: Sequence[BlockwiseLM]) -> list[dict[str, float]]:
    """By random seed; a token's difficulty for one model is the mean loss of the others there, if there are
    any."""
    test: Windows = data.windows("test")
    statistics = [layer_statistics(model, *test) for model in models]
    kinds = [traits(data, "test", model, of_model) for model, of_model in zip(models, statistics)]
    rows = [
        model_values(of_model, losses_without(model, *test), kind)
        for model, of_model, kind in zip(models, statistics, kinds)
    ]
    if len(models) > 1:
        last = [of_model.loss[-1] for of_model in statistics]
        for own, (row, of_model, kind) in enumerate(zip(rows, statistics, kinds)):
            row |= prefixed("others.", class_values(of_model, consensus(last, own), kind))
    return rows


# Both -------------------------------------------------------------------------------------------------------


def _given(job: Job) -> tuple[LayeredModels, Sizes]:
    return LayeredModels.of(job.shared["layered_models"]), Sizes.of(job.shared["characters"])


def traits(data: Characters, split: str, model: BlockwiseLM, statistics: LayerStatistics) -> Traits:
    """What every token of a split is like; ``statistics`` are the model's there."""
    longer = cut_context(model, *data.windows(split)) - statistics.loss[-1]
    return {"unseen": unseen(data, split), "likeliest": likeliest(data, split), "context": longer}


def class_values(statistics: LayerStatistics, difficulty: np.ndarray, kinds: Traits) -> dict[str, float]:
    """Mean loss, accuracy and step by class and layer, counted from 1, and the loss that depth takes off.

    ``difficulty`` (N,) makes the classes. What depth takes off is in nats, and as a share; the last layer's
    part of it is ``last_gain``.
    """
    of_class = classes(difficulty)
    loss, step, right = (
        class_means(values, of_class) for values in (statistics.loss, statistics.step, statistics.correct)
    )
    gain, relative = loss[0] - loss[-1], improvement(loss)
    out = {
        "gain.easy_minus_hard": gain[0] - gain[2],
        "improvement.easy_minus_hard": relative[0] - relative[2],
    }
    for number, name in enumerate(CLASSES):
        out |= {
            f"tokens.{name}": (of_class == number).sum(),
            f"share.{name}": (of_class == number).mean(),
            f"gain.{name}": gain[number],
            f"improvement.{name}": relative[number],
            f"last_gain.{name}": loss[-2, number] - loss[-1, number],
        }
        for key, means in (("loss", loss), ("norm", step), ("accuracy", right)):
            out |= {f"{key}.{name}.{layer}": value for layer, value in enumerate(means[:, number], 1)}
    differences = step[:, 2] - step[:, 0]
    out |= {f"norm.hard_minus_easy.{layer}": value for layer, value in enumerate(differences, 1)}
    for key, values in kinds.items():
        (means,) = class_means(values[None], of_class)
        out |= {f"{key}.{name}": mean for name, mean in zip(CLASSES, means)}
        out[f"{key}.hard_minus_easy"] = means[2] - means[0]
    return {key: float(value) for key, value in out.items()}


def model_values(statistics: LayerStatistics, without: np.ndarray, kinds: Traits) -> dict[str, float]:
    """All that one model says by itself; ``without`` (L, N) as ``losses_without`` gives it."""
    easy, hard = np.quantile(statistics.loss[-1], QUANTILES)
    step, needed = statistics.step.mean(1), (without - statistics.loss[-1]).mean(1)
    out = class_values(statistics, statistics.loss[-1], kinds)
    out |= prefixed("first.", class_values(statistics, statistics.loss[0], kinds))
    out |= {
        "threshold.easy": easy,
        "threshold.hard": hard,
        "ppl": np.exp(statistics.loss[-1].mean(dtype=np.float64)),
        "gain.all": statistics.loss[0].mean() - statistics.loss[-1].mean(),
        "step_spread.1": statistics.step[0].std() / step[0],
        "norm.first_minus_largest_other": step[0] - step[1:].max(),
        "needed.first_minus_largest_other": needed[0] - needed[1:].max(),
    }
    for layer, (length, turn, loss) in enumerate(zip(step, statistics.turn.mean(1), needed), 1):
        out |= {f"norm.all.{layer}": length, f"turn.{layer}": turn, f"needed.{layer}": loss}
    return {key: float(value) for key, value in out.items()}


def figures(
    rows: list[dict[str, float]], sizes: Sequence[str], arms: Sequence[str], layers: int
) -> dict[str, Any]:
    """One plot, of the largest text and the report's arm, and a table of what depth takes off."""
    out = {}
    if PUBLISHED_ARM in arms:
        panels = {f"classes {GROUPINGS[start]}": f"{sizes[-1]}.{start}" for start in ("", "others.")}
        out["losses"] = loss_figure(rows, panels, layers)
    means = over_seeds(rows)
    cells = []
    for size in sizes:
        for arm, start in STARTS.items():
            if arm.split(",")[0] not in arms:
                continue
            for grouping, words in GROUPINGS.items():
                values = [means[f"{size}.{start}{grouping}gain.{name}"] for name in CLASSES]
                intervals = [[value["value"], value["low"], value["high"]] for value in values]
                cells.append([size, arm.replace("_", " "), words, *intervals])
    out["gains"] = {
        "title": "Nats that the last layer takes off the first layer's loss, by class of token",
        "note": "Test text; mean and 95 % t interval over seeds. Classes by final loss must improve if easy.",
        "columns": ["text", "trained on", "classes", *CLASSES],
        "rows": cells,
    }
    return out


def loss_figure(rows: list[dict[str, float]], panels: Mapping[str, str], layers: int) -> dict[str, Any]:
    """Loss by layer and class; ``panels`` are beginnings of keys by the title of the panel that shows
    them."""
    curves = {
        panel: {
            name: [
                {layer: row[f"{start}loss.{name}.{layer}"] for layer in range(1, layers + 1)} for row in rows
            ]
            for name in CLASSES
        }
        for panel, start in panels.items()
    }
    return panels_figure(
        "Loss by layer and class of token",
        curves,
        "classes",
        "layer",
        "loss",
        "Logit lens: the last layer's readout on every layer, in nats.",
    )
