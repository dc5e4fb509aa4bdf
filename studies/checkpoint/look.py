"""Which exits? All candidates are read out by least squares; those that make most attainable are trained.

The maps are fitted on training text; calibration text chooses their ridge and says what they are worth.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from offramp.analysis.oracle import RISES
from offramp.analysis.oracle import Path as Way
from offramp.analysis.readings import BATCH, Readings, read_windows
from offramp.artifacts.artifact import open_artifact
from offramp.artifacts.files import write_json
from offramp.checkpoints.checkpoint import Checkpoint
from offramp.corpus.excerpts import Windows
from offramp.corpus.windows import TokenWindows
from offramp.machine.device import setup
from offramp.models.pretrained import PretrainedLM, load_pretrained
from offramp.nn.translators import Affine
from offramp.routing.cost import exit_costs
from offramp.routing.split import spread_windows
from offramp.training.least_squares import fit_maps, place, sums
from studies.checkpoint.settings import StudySettings, checkpoint_of


def run(folder: Path, settings: StudySettings, device_name: str) -> None:
    """Write look.json to the base project: what every candidate is worth, and which exits are chosen."""
    device = setup(device_name, settings.devices[device_name].threads)
    data = open_artifact(folder / "base/data", "data")
    window = settings.params["window"]
    checkpoint = Checkpoint(str(checkpoint_of(settings)))
    model = load_pretrained(checkpoint, settings.candidates, window, translator="affine").to(device)
    _fit(model, data, settings, device)
    windows = looked_at(TokenWindows(data, "calibration"), settings.looked_at)
    readings = read_windows(model, windows, {"exits": model.readout_input}, device)["exits"]
    costs = np.array(exit_costs(model, window, reads_out=False, decision_flops=0))
    savings = {which: attainable_with(which, readings, costs) for which in choices(settings)}
    chosen = max(savings, key=lambda which: sum(savings[which].values()))
    write_json(
        folder / "base/look.json",
        {
            "chosen": [settings.candidates[exit] for exit in chosen],
            "tokens": int(readings.loss.shape[1]),
            "exits": [_worth(exit, readings, costs, settings) for exit in range(len(settings.candidates))],
            "ppl": float(np.exp(readings.loss[-1].mean())),
            "savings": [
                {"exits_after": [settings.candidates[exit] for exit in which], **of_which}
                for which, of_which in savings.items()
            ],
        },
    )


def choices(settings: StudySettings) -> list[tuple[int, ...]]:
    """All sets of as many candidates as are to be trained, by their places."""
    return list(combinations(range(len(settings.candidates)), settings.exits))


def attainable_with(which: tuple[int, ...], readings: Readings, costs: np.ndarray) -> dict[str, float]:
    """What the divergence oracle saves with these exits alone in use, at every rise in perplexity."""
    rows = [*which, len(costs) - 1]
    way = Way.of(readings.divergence[rows], readings.loss[rows], costs[rows])
    return {name: point.flop_saving for name, point in zip(RISES, way.furthest(list(RISES.values())))}


def looked_at(windows: TokenWindows, wanted: int) -> Windows:
    """Some evenly spaced windows of a split."""
    chosen = spread_windows(len(windows), wanted)
    tokens, targets = windows.batch(chosen)
    group = windows.documents(chosen)[:, 0]
    return Windows(tokens, targets, group, documents=len(np.unique(group)), grouped_by="documents")


def _fit(model: PretrainedLM, data: Any, settings: StudySettings, device: torch.device) -> None:
    parts = []
    for split, tokens in (
        ("train", settings.look_tokens),
        ("calibration", settings.looked_at * model.config.window),
    ):
        windows = TokenWindows(data, split)
        chosen = spread_windows(len(windows), tokens // windows.window)
        parts.append(sums(model, _batches(windows, chosen), device=device))
    for translator in model.translators:
        cast(Affine, translator).last.requires_grad_(False)
    place(model, fit_maps(*parts), parts[0])


def _batches(windows: TokenWindows, chosen: Tensor) -> Iterator[Tensor]:
    for rows in chosen.split(BATCH):
        yield windows.batch(rows)[0]


def _worth(exit: int, readings: Readings, costs: np.ndarray, settings: StudySettings) -> dict[str, Any]:
    return {
        "layers": settings.candidates[exit],
        "flop_saving": float(1 - costs[exit]),
        "ppl": float(np.exp(readings.loss[exit].mean())),
        "agreement": float((readings.argmax[exit] == readings.argmax[-1]).mean()),
        "attainable": attainable_with((exit,), readings, costs),
    }
